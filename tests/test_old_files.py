"""Files that an earlier version wrote still load, and go on as they did there.

`fixtures/version-1` holds a tiny base, an adapter and three sessions as sonic-kv wrote them when options had
other names, and the logits that it computed behind each: as saved, and after one more message.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_base, tiny_tokenizer

from sonic_kv.model.adapter import Adapter
from sonic_kv.model.model import SonicModel
from sonic_kv.session.session import ChatSession

FOLDER = Path(__file__).parent / "fixtures" / "version-1"
NEXT = [65, 66, 67]


def old_model(adapter: bool) -> SonicModel:
    base = tiny_base("qwen3", num_hidden_layers=2, intermediate_size=32, tie_word_embeddings=True)
    weights = {name: weight.float() for name, weight in load_file(FOLDER / "base.safetensors").items()}
    missing, unknown = base.load_state_dict(weights, strict=False)
    assert not unknown
    assert set(missing) <= {"lm_head.weight"}  # tied
    return SonicModel(base, tiny_tokenizer(), Adapter.load(base, FOLDER) if adapter else None)


@pytest.mark.parametrize("name", ["packed", "compact", "recent"])
def test_a_session_of_an_earlier_version_goes_on_as_it_did_there(name: str) -> None:
    model = old_model(adapter=name != "recent")
    chat = ChatSession.load(model, FOLDER / f"session-{name}.safetensors")
    expected = load_file(FOLDER / "expected.safetensors")
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 3, "user"]
    found = model.feed(chat.cache.fork(), NEXT)
    torch.testing.assert_close(found, expected[f"{name}.logits"], atol=1e-4, rtol=0)
    segments = chat.cache.lengths.segments
    chat.extend([{"role": "assistant", "content": "no, nothing else that I would know of"}])
    assert chat.cache.lengths.segments > segments  # what is kept of it is chosen as it was
    found = model.feed(chat.cache.fork(), NEXT)
    torch.testing.assert_close(found, expected[f"{name}.later"], atol=1e-4, rtol=0)
