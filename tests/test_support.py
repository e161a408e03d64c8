"""What cannot be compressed correctly is refused, in one line that says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, FAMILIES, SHAPE, random_adapter, tiny_base, tiny_model, tiny_tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import (
    ContextLengthError,
    FileError,
    ModelError,
    NumericalError,
    SonicError,
    UnsupportedModelError,
)
from sonic_kv.model.forward import with_cache
from sonic_kv.model.model import SonicModel
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

HALF = Budget(compression_ratio=0.5)
SMALL = SessionConfig(min_segment_tokens=16, max_segment_tokens=40)
SIZES = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=262, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=262, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )


def falcon() -> Any:
    return FalconForCausalLM(FalconConfig(alibi=True, **SIZES))


def cohere() -> Any:
    return CohereForCausalLM(
        CohereConfig(intermediate_size=48, pad_token_id=0, eos_token_id=1, bos_token_id=2, **SIZES)
    )


def of_type(model_type: str) -> Any:
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SHAPE))


def rope(kind: str, **parameters: Any) -> Any:
    return tiny_base(
        "llama", rope_parameters={"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, **parameters}
    )


def longrope() -> Any:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 256}
    return rope("longrope", **factors)


def longrope_phi3() -> Any:
    factors = {
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "rope_type": "longrope",
        "rope_theta": 10000.0,
    }
    return tiny_base("phi3", rope_parameters=factors, original_max_position_embeddings=256)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no-rope": (gpt2, "RoPE"),
    "encoder-decoder": (t5, "encoder-decoder"),
    "alibi": (falcon, "attention of its own"),
    "attention-sinks": (lambda: of_type("gpt_oss"), "sinks"),
    "linear-attention": (lambda: of_type("qwen3_next"), "linear_attention"),
    "interleaved-rope": (cohere, "position"),
    "dynamic-ntk": (lambda: rope("dynamic"), "length of the input"),
    "longrope": (longrope, "length of the input"),
    "longrope-phi3": (longrope_phi3, "length of the input"),
}


@pytest.mark.filterwarnings("ignore")  # transformers' own remarks on these configs
@pytest.mark.parametrize("kind", REFUSED)
def test_model_that_cannot_be_compressed_is_refused_and_says_why(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        SonicModel(make().eval(), tiny_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_static_rope_variants_keep_the_law_of_eviction(kind: str) -> None:
    """Compact keys of plain selection are raw keys, moved: scaled frequencies included."""
    more = {"original_max_position_embeddings": 256}
    if kind == "llama3":
        more |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    base = rope(kind, **(more if kind != "linear" else {}))
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base, lora_rank=0))
    chat = ChatSession(model, HALF, config=SessionConfig(16, 80, positions="compact"))
    chat.extend(DIALOGUE[:2])
    layer = chat.cache.layers[1]
    kept = layer.positions[0, 0].long()
    with torch.no_grad():
        whole = DynamicCache()
        base(torch.tensor([chat.token_ids]), **with_cache(base, whole))
    raw = whole.layers[1].keys[:, :1]
    start = chat.cache.lengths.prefix
    shift = torch.arange(start, start + len(kept)) - kept
    moved = model.rope.rotate(1, raw[:, :, kept], shift)
    torch.testing.assert_close(layer.keys[:, :1, start : start + len(kept)], moved, atol=1e-5, rtol=0)


def test_model_without_grouped_queries_in_its_config_is_supported() -> None:
    """GPT-NeoX: fused projections, partial rotary embedding, parallel residual; no LoRA, selection only."""
    torch.manual_seed(0)
    base = GPTNeoXForCausalLM(
        GPTNeoXConfig(intermediate_size=48, max_position_embeddings=512, **SIZES)
    ).eval()
    for positions in ("original", "compact"):
        config = SessionConfig(16, 40, positions=positions)  # type: ignore[arg-type]
        chat = ChatSession(SonicModel(base, tiny_tokenizer()), HALF, config=config)
        chat.extend(DIALOGUE)
        assert chat.stats.entries < chat.stats.logical_tokens
        assert chat.send("hi", SamplingConfig(max_new_tokens=3)).usage.completion_tokens == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_supported(family: str) -> None:
    chat = ChatSession(tiny_model(family), HALF, config=SMALL)
    chat.extend(DIALOGUE)
    assert chat.stats.entries < chat.stats.logical_tokens


# --- lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_message_longer_than_the_model_is_refused_with_advice(positions: Any) -> None:
    chat = ChatSession(tiny_model(), Budget(), config=SessionConfig(positions=positions))
    advice = "lower the budget" if positions == "compact" else "positions='compact'"
    for call in (chat.send, lambda text: chat.extend([{"role": "user", "content": text}])):
        with pytest.raises(ContextLengthError, match=advice) as caught:
            call("x" * SHAPE["max_position_embeddings"])
        assert "\n" not in str(caught.value)
    assert chat.messages == []
    with pytest.raises(ContextLengthError):
        ChatSession(chat.model, system="x" * 600, config=SessionConfig(positions=positions))


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight", ["model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight", "lm_head.weight"]
)
def test_weights_that_are_no_numbers_are_refused_before_anything_is_kept(weight: str) -> None:
    base = tiny_base("llama")
    with torch.no_grad():
        dict(base.named_parameters())[weight].fill_(torch.nan)
    with pytest.raises(NumericalError, match="NaN") as caught:
        ChatSession(SonicModel(base, tiny_tokenizer()), HALF).extend(DIALOGUE[:2])
    assert "\n" not in str(caught.value)


def test_one_bad_row_of_the_embedding_is_noticed_when_it_is_used() -> None:
    base = tiny_base("llama")
    with torch.no_grad():
        base.model.embed_tokens.weight[ord("z")] = torch.nan
    letter = tiny_tokenizer()("z")["input_ids"][0]
    with torch.no_grad():
        base.model.embed_tokens.weight[letter] = torch.nan
    chat = ChatSession(SonicModel(base, tiny_tokenizer()), HALF, config=SMALL)
    chat.extend([{"role": "user", "content": "abc"}, {"role": "assistant", "content": "cba"}])
    before = list(chat.token_ids)
    with pytest.raises(NumericalError):
        chat.extend([{"role": "user", "content": "abz, and so on"}])
    with pytest.raises(NumericalError):
        chat.send("z")
    assert chat.token_ids == before


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder"])
def test_missing_model_is_one_clear_error(name: str) -> None:
    with pytest.raises(FileError, match="no such folder") as caught:
        SonicModel.from_pretrained(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "reason"), [(t5, "encoder-decoder"), (gpt2, "RoPE")])
def test_unsupported_model_is_refused_by_its_folder_too(
    make: Callable[[], Any], reason: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        SonicModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_that_is_no_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load model") as caught:
        SonicModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["weights truncated", "no weights", "config is no JSON"])
def test_damaged_model_folder_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "weights truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "no weights":
        weights.unlink()
    else:
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(SonicError, match="cannot load model") as caught:
        SonicModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "./no/folder"])
def test_missing_adapter_is_one_clear_error(name: str, tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FileError, match="does not exist") as caught:
        SonicModel.from_pretrained(tmp_path, adapter=name)
    assert "\n" not in str(caught.value)


def test_adapter_beside_the_weights_is_found(tmp_path: Path) -> None:
    model = tiny_model()
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert SonicModel.from_pretrained(tmp_path).adapter is None
    assert model.adapter is not None
    model.adapter.save(tmp_path, model.fingerprint())
    found = SonicModel.from_pretrained(tmp_path).adapter
    assert found is not None
    assert found.digest() == model.adapter.digest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sessions_run_in_their_dtype(dtype: torch.dtype) -> None:
    base = tiny_base().to(dtype)
    for adapter in (random_adapter(base), None):
        for positions in ("original", "compact"):
            config = SessionConfig(16, 40, positions=positions)  # type: ignore[arg-type]
            chat = ChatSession(SonicModel(base, tiny_tokenizer(), adapter), HALF, config=config)
            chat.extend(DIALOGUE)
            assert chat.send("hi", SamplingConfig(max_new_tokens=3)).usage.completion_tokens == 3
            assert {key.dtype for layer in chat.cache.layers for key in layer.heads()[0]} == {dtype}
            assert chat.stats.full_bytes == chat.stats.logical_tokens * 3 * 2 * 2 * 8 * 2
