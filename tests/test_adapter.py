"""Laws of the adapter: what it changes, what it leaves alone, and which files it accepts."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import FAMILIES, random_adapter, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor, nn

from sonic_kv import files
from sonic_kv.errors import AdapterError, FileError, NumericalError, SonicError, UnsupportedModelError
from sonic_kv.model import layout as lay
from sonic_kv.model.adapter import FILE_NAME, Adapter, fingerprint
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.training.objectives import checkpointed

KINDS: list[dict[str, Any]] = [
    {},
    {"form": "learned"},
    {"lora_rank": 0},
    {"form": "learned", "turn_classes": 3},
]
IDS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(0))


def plan() -> lay.Layout:
    """Two closed segments with Nexus tokens, one open."""
    return lay.interleave(24, 2, [10, 18], [torch.tensor([3, 7]), torch.tensor([11, 12, 17])])


def logits(model: SonicModel, layout: lay.Layout) -> Tensor:
    """One pass in which nobody sees a Nexus token."""
    alive = [layout.default_lifetime()[:, None].expand(-1, model.num_heads, -1)] * model.num_layers
    return model.one_pass(IDS, layout, alive)


# --- the base -----------------------------------------------------------------------------------


def snapshot(base: nn.Module) -> dict[str, Any]:
    """Modules by identity, tensors by value, and the base's own attributes."""
    return {
        "modules": {name: id(module) for name, module in base.named_modules()},
        "weights": {name: weight.clone() for name, weight in base.state_dict().items()},
        "attributes": set(vars(base)),
        "attention": base.config._attn_implementation,  # type: ignore[union-attr]
    }


def assert_untouched(base: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(base)
    assert after["modules"] == before["modules"]
    assert after["attributes"] == before["attributes"]
    assert after["attention"] == before["attention"]
    assert after["weights"].keys() == before["weights"].keys()
    assert all(torch.equal(after["weights"][name], weight) for name, weight in before["weights"].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_base_is_untouched_by_adapters_and_their_runs(family: str) -> None:
    base, layout = tiny_base(family), plan()
    before, learns = snapshot(base), [weight.requires_grad for weight in base.parameters()]
    for seed in (1, 2):
        model = SonicModel(base, tiny_tokenizer(), random_adapter(base, seed=seed))
        assert_untouched(base, before)
        logits(model, layout)
        assert_untouched(base, before)
    assert [weight.requires_grad for weight in base.parameters()] == learns


def test_no_weight_of_the_base_is_part_of_the_adapter() -> None:
    base = tiny_base()
    mine = {id(weight) for weight in random_adapter(base).parameters()}
    assert not mine & {id(weight) for weight in base.parameters()}


# --- the conditional LoRA -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_acts_on_nexus_rows_only(family: str) -> None:
    base = tiny_base(family)
    layout = plan()
    with torch.no_grad():
        bare = logits(SonicModel(base, tiny_tokenizer()), layout)
        adapter = random_adapter(base)
        adapter.embedding.zero_()
        mine = logits(SonicModel(base, tiny_tokenizer(), adapter), layout)
    assert torch.equal(mine[~layout.nexus], bare[~layout.nexus])
    assert (mine[layout.nexus] - bare[layout.nexus]).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_covers_every_projection_of_every_layer(family: str) -> None:
    base = tiny_base(family)
    covered = {name.replace("/", ".") for name in random_adapter(base).lora}
    linear = {n for n, m in base.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    assert covered == linear


def gradients(checkpointing: bool, compact: bool) -> dict[str, Tensor]:
    model = tiny_model("llama")
    layout = plan()
    adapter = model.adapter
    assert adapter is not None
    kept = [torch.tensor([[3], [7]]), torch.tensor([[3, 12], [11, 17]])]
    alive = [lay.lifetimes(layout, kept)] * model.num_layers
    with checkpointed(adapter.twin, checkpointing):
        found = model.one_pass(IDS, layout, alive, compact=compact)
    # layers run again in the backward pass, wherever that is
    thread = threading.Thread(target=found.square().mean().backward)
    thread.start()
    thread.join()
    return {name: weight.grad for name, weight in adapter.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("compact", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(compact: bool) -> None:
    plain, checkpointed = gradients(False, compact), gradients(True, compact)
    assert len(plain) > 20
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in plain.values())


def test_frozen_base_gets_no_gradient() -> None:
    model = tiny_model()
    layout = plan()
    model.base.requires_grad_(False)
    logits(model, layout).square().mean().backward()
    assert all(weight.grad is None for weight in model.base.parameters())


def test_distance_classes_of_the_turn_embedding_double_in_width() -> None:
    adapter = random_adapter(tiny_base(), form="learned", turn_classes=3)
    rows = adapter.embed(torch.zeros(1, 9, 32), torch.arange(9)[None])[0]
    classes = [next(c for c in range(9) if torch.equal(rows[c], row)) for row in rows]
    assert classes == [0, 0, 2, 2, 4, 4, 4, 4, 4]  # 0 and 1 | 2–3 | 4 and more


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", KINDS, ids=["anchored", "learned", "importance-only", "segment"])
def test_saved_then_loaded_is_the_same_adapter(config: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_base()
    adapter = random_adapter(base, **config)
    path = adapter.save(tmp_path, fingerprint(base), {"steps": 7})
    assert path == tmp_path / FILE_NAME
    for source in (tmp_path, path):
        loaded = Adapter.load(base, source)
        assert loaded.config == adapter.config
        assert loaded.digest() == adapter.digest()
        assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), adapter.parameters(), strict=True))
    assert files.read_header(path)["notes"] == {"steps": 7}


def test_another_adapter_has_another_digest() -> None:
    base = tiny_base()
    assert random_adapter(base, seed=1).digest() != random_adapter(base, seed=2).digest()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 64}, "hidden_size"),
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"vocab_size": 300}, "vocab_size"),
        ({"seed": 9}, "weights"),
        ({"family": "llama"}, "model_type"),
    ],
)
def test_adapter_of_another_model_is_refused_by_the_property(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    base = tiny_base()
    random_adapter(base).save(tmp_path, fingerprint(base))
    with pytest.raises(AdapterError, match=f"another model: {named} ") as caught:
        Adapter.load(tiny_base(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def _header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a sealed file with a changed header and a valid seal."""
    header, tensors = files.read_sealed(path, "adapter")
    change(header)
    kind, version = header.pop("kind"), header.pop("version")
    sealed = {**header, "kind": kind, "version": version}
    sealed["sha256"] = files._digest(sealed, tensors)
    save_file(tensors, path, metadata={files.HEADER: json.dumps(sealed)})


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[type[SonicError], str, Callable[[Path], Any]]] = {
    "missing": (FileError, "does not exist", lambda p: p.unlink()),
    "empty": (FileError, "damaged", lambda p: p.write_bytes(b"")),
    "truncated": (FileError, "damaged", lambda p: p.write_bytes(p.read_bytes()[:-100])),
    "header cut": (FileError, "damaged", lambda p: p.write_bytes(p.read_bytes()[:40])),
    "text": (FileError, "damaged", lambda p: p.write_text("once upon a time\n" * 20)),
    "weight changed": (FileError, "checksum", lambda p: _flip(p, -3)),
    "unsealed": (FileError, "not written by sonic-kv", lambda p: save_file({"a": torch.ones(2)}, p)),
    "newer": (FileError, "upgrade", lambda p: _header(p, lambda h: h.update(version=files.VERSION + 1))),
    "session": (FileError, "not an? adapter file", lambda p: _header(p, lambda h: h.update(kind="session"))),
    "option unknown": (
        FileError,
        "this version",
        lambda p: _header(p, lambda h: h["config"].update(new_option=1)),
    ),
    "option missing": (FileError, "this version", lambda p: _header(p, lambda h: h.pop("config"))),
    "base missing": (AdapterError, "another model", lambda p: _header(p, lambda h: h.pop("base"))),
    "base a text": (AdapterError, "another model", lambda p: _header(p, lambda h: h.update(base="llama"))),
    "other rank": (
        FileError,
        "this version",
        lambda p: _header(p, lambda h: h["config"].update(lora_rank=2)),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_adapter_file_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    base = tiny_base()
    before = snapshot(base)
    path = random_adapter(base).save(tmp_path, fingerprint(base))
    expected, says, spoil = DAMAGE[damage]
    spoil(path)
    with pytest.raises(expected, match=says) as caught:
        Adapter.load(base, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert_untouched(base, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_adapter_with_weights_that_are_no_numbers_is_refused(bad: float, tmp_path: Path) -> None:
    base = tiny_base()
    adapter = random_adapter(base)
    with torch.no_grad():
        adapter.scorer.up[1].weight[0, 0] = bad
    adapter.save(tmp_path, fingerprint(base))
    with pytest.raises(NumericalError, match=r"up\.1\.weight") as caught:
        Adapter.load(base, tmp_path)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    base = tiny_base()
    with pytest.raises(FileError, match="cannot write") as caught:
        random_adapter(base).save(tmp_path / "taken", fingerprint(base))
    assert "\n" not in str(caught.value)


def test_a_crash_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    path = random_adapter(base, seed=1).save(tmp_path, fingerprint(base))
    old = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr("os.replace", fail)
        with pytest.raises(FileError, match="No space"):
            random_adapter(base, seed=2).save(tmp_path, fingerprint(base))
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


# --- fingerprint --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_fingerprint_is_the_same_in_every_dtype(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny_base(family)
    base.save_pretrained(tmp_path)
    prints = [
        fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert prints[0] == prints[1] == fingerprint(base)


def test_fingerprint_notices_other_weights() -> None:
    base = tiny_base()
    before = fingerprint(base)
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    assert fingerprint(base)["weights"] != before["weights"]


def test_adapter_for_a_model_without_known_projections_is_refused() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=48, **sizes))
    with pytest.raises(UnsupportedModelError, match="proj") as caught:
        Adapter(base, AdapterConfig(lora_rank=4))
    assert "\n" not in str(caught.value)
