"""A base in four bits keeps the laws of a whole one, and an adapter can be trained on it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from onepass import RecordingModel, one_pass_logits
from tiny import DIALOGUE

from sonic_kv import Budget, ChatSession, SonicModel
from sonic_kv.compress.options import SessionConfig
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import AdapterError, ConfigError
from sonic_kv.model.options import AdapterConfig
from sonic_kv.training.options import TrainConfig
from sonic_kv.training.trainer import Trainer

installed = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # bitsandbytes warns of kernels that it does without


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_missing_bitsandbytes_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'sonic-kv\[quantized\]'"):
        SonicModel.from_pretrained("tiny", quantization="nf4")


@installed
def test_an_adapter_of_the_whole_base_is_refused() -> None:
    with pytest.raises(AdapterError, match="made for another model"):
        SonicModel.from_pretrained("tiny", quantization="nf4")  # the default model's adapter lies beside it


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The default base without its adapter."""
    model = SonicModel.from_pretrained("tiny")
    model.base.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@installed
def test_an_adapter_learns_on_a_base_in_four_bits_and_obeys_the_law(whole: Path, tmp_path: Path) -> None:
    model = SonicModel.from_pretrained(whole, quantization="nf4")
    matrices = [p for n, p in model.base.named_parameters() if "proj" in n]
    assert {p.dtype for p in matrices} == {torch.uint8}
    config = TrainConfig(
        out=str(tmp_path / "run"),
        data_share=0.0,
        max_steps=4,
        importance_steps=0,
        batch_size=2,
        log_every=1,
        bf16=False,
    )
    shape, synth = AdapterConfig(lora_rank=4), SynthConfig(min_exchanges=4, max_exchanges=4)
    path = Trainer(model, shape, synth, config).run()
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(step["grad_norm"] > 0 for step in steps)

    again = RecordingModel.from_pretrained(whole, path, quantization="nf4")
    assert isinstance(again, RecordingModel)
    assert again.adapter is not None
    assert bool((again.adapter.embedding != 0).any())
    again.start()
    chat = ChatSession(again, Budget(compression_ratio=0.7), config=SessionConfig(8, 40))
    for turn in range(len(DIALOGUE) // 2):
        chat.extend(DIALOGUE[2 * turn : 2 * turn + 2])
    assert chat.cache.stored < chat.cache.logical_length
    torch.testing.assert_close(torch.cat(again.logits), one_pass_logits([chat])[0], atol=1e-4, rtol=0)
