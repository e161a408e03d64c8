"""Laws of an exported prefix: what another engine is given to hold."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import DIALOGUE, tiny_base, tiny_model, tiny_tokenizer
from transformers import DynamicCache

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicError, SonicModel
from sonic_kv.cache.export import read_export
from sonic_kv.errors import ConfigError, FileError, MessageError, UnsupportedModelError
from sonic_kv.model.fingerprint import checkpoint_fingerprint
from sonic_kv.model.forward import with_cache
from sonic_kv.session.work import run

COMPACT = SessionConfig(min_segment_tokens=16, max_segment_tokens=40, positions="compact")
BRIEF = SamplingConfig(max_new_tokens=6)


def talk(model: SonicModel, config: SessionConfig = COMPACT, exchanges: int = 3) -> ChatSession:
    chat = ChatSession(model, Budget(compression_ratio=0.5), system="be brief", config=config, sampling=BRIEF)
    chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "eviction"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "phi3-partial"])
def test_plain_transformers_continues_from_an_export_as_the_session_does(
    family: str, adapter: bool, tmp_path: Path
) -> None:
    model = tiny_model(family, adapter=adapter)
    chat = talk(model, replace(COMPACT, min_segment_tokens=24), exchanges=2)
    chat.extend([{"role": "user", "content": "hm"}, {"role": "assistant", "content": "yes?"}])
    written = chat.export(tmp_path)
    assert written.open_ids
    assert chat.stats.memory  # both parts of the prompt are there
    export = read_export(tmp_path, written.digest)

    question = "where does Ada live?"
    chat.extend([{"role": "user", "content": question}])
    replied = run(model, chat.dialogue.copy().draft()).token_ids  # as it is decoded
    cache = DynamicCache()
    for number, (keys, values) in enumerate(export.load()):
        cache.update(keys[None].clone(), values[None].clone(), number)
    prompt = written.open_ids + model.format.user(question) + model.format.generation_prompt()
    with torch.no_grad():
        for token in replied:
            start = cache.get_seq_length()
            positions = torch.arange(start, start + len(prompt))[None]
            logits = model.base(
                torch.tensor([prompt]), position_ids=positions, **with_cache(model.base, cache)
            ).logits
            assert int(logits[0, -1].argmax()) == token
            prompt = [token]


def test_an_export_is_named_by_its_content_and_never_written_again(tmp_path: Path) -> None:
    chat = talk(tiny_model())
    first = chat.export(tmp_path / "new" / "folder")
    stamp = first.path.stat().st_mtime_ns
    assert first.path.name == f"{first.digest}.safetensors"
    assert chat.fork().export(first.path.parent) == first
    assert first.path.stat().st_mtime_ns == stamp
    chat.set_budget(Budget(compression_ratio=0.9))
    second = chat.export(first.path.parent)
    assert second.digest != first.digest
    assert sorted(first.path.parent.iterdir()) == sorted([first.path, second.path])


def test_what_is_read_is_what_the_session_holds(tmp_path: Path) -> None:
    chat = talk(tiny_model(), exchanges=2)
    written, stats = chat.export(tmp_path), chat.stats
    read = read_export(tmp_path, written.digest)
    assert read == replace(written, open_ids=[])
    assert read.shape == (3, 2, stats.prefix + stats.memory, 8)
    assert len(read.token_ids) == read.shape[2]
    assert read.token_ids[: stats.prefix] == chat.token_ids[: stats.prefix]
    assert set(read.token_ids[stats.prefix :]) == {chat.token_ids[0]}
    assert len(written.open_ids) == stats.open
    for layer, (keys, values) in zip(chat.cache.layers, read.load(), strict=True):
        assert torch.equal(layer.keys[0, :, : read.shape[2]], keys)
        assert torch.equal(layer.values[0, :, : read.shape[2]], values)


def test_exporting_leaves_the_session_as_it_was(tmp_path: Path) -> None:
    chat, other = talk(tiny_model()), talk(tiny_model())
    chat.export(tmp_path)
    assert chat.send("and?").text == other.send("and?").text
    assert chat.token_ids == other.token_ids


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match="positions='compact'"):
        talk(model, replace(COMPACT, positions="original")).export(tmp_path)
    with pytest.raises(UnsupportedModelError, match="sliding window of 256"):
        talk(tiny_model("mistral", sliding_window=256)).export(tmp_path)
    bare = SonicModel(tiny_base(), tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    with pytest.raises(MessageError, match="nothing to export"):
        ChatSession(bare, config=COMPACT).export(tmp_path)
    stream = (chat := talk(model)).stream("hi")
    next(stream)
    with pytest.raises(MessageError, match="still being streamed"):
        chat.export(tmp_path)
    stream.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "../x", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", None, 7, []]
)
def test_a_name_that_is_no_digest_touches_no_file(name: object, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not the digest of an export") as caught:
        read_export(tmp_path, name)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_missing_renamed_or_damaged_export_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    chat = talk(model)
    export = chat.export(tmp_path)
    other = "0" * 64
    with pytest.raises(FileError, match="does not exist"):
        read_export(tmp_path, other)
    (tmp_path / f"{other}.safetensors").write_bytes(export.path.read_bytes())
    with pytest.raises(FileError, match="renamed or changed"):
        read_export(tmp_path, other)
    chat.save(tmp_path / f"{other}.safetensors")
    with pytest.raises(FileError, match="renamed or changed"):
        read_export(tmp_path, other)
    data = bytearray(export.path.read_bytes())
    data[-1] ^= 1
    export.path.write_bytes(data)
    with pytest.raises(FileError, match="checksum"):
        read_export(tmp_path, export.digest).load()
    export.path.write_bytes(data[:100])
    with pytest.raises(SonicError, match="damaged"):
        read_export(tmp_path, export.digest)
    export.path.unlink()
    with pytest.raises(FileError, match="does not exist"):
        export.load()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_checkpoint_has_the_fingerprint_of_the_model_loaded_from_it(
    family: str, changes: dict[str, bool], tmp_path: Path
) -> None:
    model = tiny_model(family, adapter=False, **changes)
    model.base.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("model*.safetensors"))) > 1
    config = model.config
    assert checkpoint_fingerprint(config, tmp_path) == model.fingerprint()
    tiny_base(family, seed=5, **changes).save_pretrained(tmp_path, max_shard_size="20kB")
    assert checkpoint_fingerprint(config, tmp_path)["weights"] != model.fingerprint()["weights"]


def test_reading_an_export_needs_neither_transformers_nor_the_engine(tmp_path: Path) -> None:
    export = talk(tiny_model()).export(tmp_path)
    code = (
        "import json, sys; from sonic_kv.cache.export import read_export; "
        f"read_export({str(tmp_path)!r}, {export.digest!r}).load(); "
        "print(json.dumps([m for m in sys.modules if m in ('transformers', 'peft', 'sonic_kv.model.model')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_connector_names_its_extra_where_vllm_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'sonic-kv\[vllm\]'"):
        importlib.import_module("sonic_kv.integrations.vllm")
