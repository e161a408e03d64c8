"""`sonic-kv plan`: sizes from a configuration alone agree with those of real models and caches."""

import json
from pathlib import Path

import pytest
from tiny import tiny_base, tiny_model

from sonic_kv import Budget, ChatSession
from sonic_kv.cli.main import main
from sonic_kv.cli.options import PlanOptions
from sonic_kv.cli.plan import NUMBER_BYTES, WAYS, Way, as_text, dialogue_bytes, plan
from sonic_kv.errors import ConfigError, FileError
from sonic_kv.model.shapes import KNOWN, shape_of


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_configuration_tells_parameters_and_bytes_of_the_model_made_from_it(family: str) -> None:
    base = tiny_base(family, tie_word_embeddings=True)
    shape = shape_of(base.config.to_dict(), family)
    matrices = sum(weight.numel() for weight in base.parameters() if weight.ndim == 2)
    assert shape.parameters == matrices
    assert shape.token_bytes(4) == tiny_model(family, adapter=False).bytes_per_token


def test_planned_bytes_are_those_of_a_session() -> None:
    model = tiny_model(adapter=False)
    chat = ChatSession(model, Budget(compression_ratio=0.5))
    messages = [("user", "a" * 60), ("assistant", "b" * 60)] * 2
    chat.extend([{"role": role, "content": text} for role, text in messages])
    stats, shape = chat.stats, shape_of(model.config.to_dict(), "tiny")
    assert not stats.open
    halved = dialogue_bytes(shape, stats.logical_tokens - stats.prefix, Way(0.5))
    numbers = shape.heads * 2 * shape.head_dim * model.dtype.itemsize
    kept = stats.memory * (numbers + 8 * shape.heads)
    assert halved == stats.memory * (numbers // model.dtype.itemsize * NUMBER_BYTES + 8 * shape.heads)
    assert stats.bytes <= 1.1 * (kept + stats.prefix * numbers)


def test_well_known_shapes() -> None:
    sizes = {name.split("/")[1]: shape_of(config, name).parameters / 1e9 for name, config in KNOWN.items()}
    assert sizes["Llama-3.1-8B-Instruct"] == pytest.approx(8.03, abs=0.01)
    assert sizes["Llama-3.1-70B-Instruct"] == pytest.approx(70.6, abs=0.1)
    assert sizes["Qwen2.5-0.5B-Instruct"] == pytest.approx(0.494, abs=0.001)
    assert sizes["Qwen3-8B"] == pytest.approx(8.19, abs=0.01)
    assert sizes["SmolLM2-135M-Instruct"] == pytest.approx(0.1345, abs=0.0005)
    assert shape_of(KNOWN["meta-llama/Llama-3.1-8B-Instruct"], "").token_bytes(2) == 131_072


def test_less_is_kept_the_more_fits() -> None:
    found = plan(PlanOptions(tokens=(1000,)), "qwen3-8b")
    sizes = [row["bytes"]["1000"] for row in found["rows"][:4]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(
        row["dialogues"]["1000"] == (24 * 10**9 - found["weight_bytes"]) // row["bytes"]["1000"]
        for row in found["rows"]
    )
    text = as_text(found)
    assert all(str(way) in text for way in WAYS)


def test_a_folder_a_name_and_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_base().config.save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--json", "--tokens", "100"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3
    with pytest.raises(FileError, match="did you mean Qwen3-8B"):
        plan(PlanOptions(), "qwen-3-8b")
    with pytest.raises(ConfigError, match="is too little"):
        plan(PlanOptions(memory="1GB"), "qwen3-8b")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the configuration of a causal language model"):
        plan(PlanOptions(), str(tmp_path))
