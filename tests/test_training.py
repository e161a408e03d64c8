"""Training on other roads: packed, checkpointed, by FlexAttention, on two processes; data."""

import gzip
import json
import logging
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train import objective_of, read_log, trainer
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.data.dialogues import read_source
from sonic_kv.data.mixture import Mixture, synthetic
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.tokens import TokenisedSource
from sonic_kv.errors import ConfigError, DataError, FileError
from sonic_kv.files import read_sealed
from sonic_kv.model import layout as lay
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.model import SonicModel
from sonic_kv.training import losses
from sonic_kv.training.objectives import Objective, raw_rows, token_scores
from sonic_kv.training.options import PlanConfig, TrainConfig
from sonic_kv.training.plan import Plan, draw_ends, draw_plan
from sonic_kv.training.teacher import run_teacher
from sonic_kv.training.trainer import check_even

PLAN = PlanConfig(ratio_min=0.6, raw_share=0.0, group_tokens=(16,), split_tokens=(48,))
OTHER = [*DIALOGUE[2:], *DIALOGUE[:2]]


def gradients(groups: list[list[int]], **options: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of two dialogues, in the given groups of one forward each."""
    objective = objective_of(PLAN, **options)
    encoded = [objective.model.format.encode(messages) for messages in (DIALOGUE, OTHER)]
    return gradients_of(objective, encoded, groups)


def gradients_of(
    objective: Objective, encoded: Sequence[Encoded], groups: list[list[int]]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    adapter = objective.adapter  # type: ignore[attr-defined]
    adapter.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for group in groups:
        rngs = [random.Random(place) for place in group]
        found = objective.backward(objective.read([encoded[i] for i in group], rngs, scorer=True), 0.5)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums, {n: w.grad.clone() for n, w in adapter.named_parameters() if w.grad is not None}


def assert_same(first: Any, second: Any) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-4, abs=1e-6)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert torch.allclose(gradient, second[1][name], rtol=1e-3, atol=1e-5), name


def test_both_losses_are_found_and_each_reaches_what_it_trains() -> None:
    sums, found = gradients([[0], [1]])
    assert sums.keys() == {"importance", "distillation"}
    assert all(value > 0 for value in sums.values())
    assert {name.split(".")[0] for name in found} >= {"scorer", "lora", "embedding"}


def test_losses_in_chunks_are_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients([[0], [1]])
    monkeypatch.setattr(losses, "CHUNK", 7)
    assert_same(gradients([[0], [1]]), whole)


def test_packed_dialogues_learn_what_single_ones_do() -> None:
    assert_same(gradients([[0], [1]]), gradients([[0, 1]]))


def test_checkpointing_gives_equal_gradients() -> None:
    assert_same(gradients([[0], [1]]), gradients([[0], [1]], checkpointing=True))


def drawn_plan(model: SonicModel, plan: PlanConfig, seed: int) -> tuple[torch.Tensor, Plan]:
    """A dialogue's tokens, and a plan of it."""
    assert model.adapter is not None
    encoded = model.format.encode(DIALOGUE)
    ids = torch.tensor(encoded.token_ids)
    (teacher,) = run_teacher(model, [ids])
    scores, ends = token_scores(model.adapter, teacher), draw_ends(encoded, plan, random.Random(0))
    return ids, draw_plan(model.adapter, scores, encoded, ends, plan, random.Random(seed))


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_flex_attention_is_sdpa(family: str) -> None:
    torch.manual_seed(0)
    base = tiny_base(family)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    ids, plan = drawn_plan(model, PLAN, 3)
    assert plan.layout.nexus.any()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not compiled: it says so
        dense, flex = (
            model.one_pass(ids[None], plan.layout, plan.lifetime, flex=flex) for flex in (False, True)
        )
    assert torch.allclose(dense, flex, atol=1e-5)


def test_block_mask_rule_is_the_visibility_mask() -> None:
    _, plan = drawn_plan(tiny_model(), PLAN, 1)
    layout, lifetime = lay.pack([plan.layout] * 2, [plan.lifetime] * 2)
    mask = lay.visible(layout, lifetime[0])  # (1, G, T, T)
    groups, length = mask.shape[1], mask.shape[-1]
    rule = lay.mask_mod(layout, lifetime[0], 2)
    b, h, q, k = torch.meshgrid(
        torch.tensor([0]), torch.arange(2 * groups), torch.arange(length), torch.arange(length), indexing="ij"
    )
    assert torch.equal(rule(b, h, q, k), mask.repeat_interleave(2, 1))
    half = length // 2
    assert not mask[..., half:, :half].any()
    assert not mask[..., :half, half:].any()
    assert torch.equal(mask[..., half:, half:], mask[..., :half, :half])


def test_observed_rows_are_the_rows_of_the_whole_mask() -> None:
    _, plan = drawn_plan(tiny_model(), PLAN, 1)
    whole = lay.visible(plan.layout, plan.lifetime[0])
    rows = raw_rows(plan.layout, torch.arange(5, 25))
    assert torch.equal(lay.visible(plan.layout, plan.lifetime[0], rows), whole[:, :, rows])


# --- several processes ------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def train_by_two(folder: Path, **changes: Any) -> Path:
    """Train in two processes, as torchrun starts them; the adapter's file."""
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_train import trainer\n"
        "from torch.distributed.tensor import DTensor\n"
        "run = trainer(Path(sys.argv[2]), **json.loads(sys.argv[3]))\n"
        "run.run()\n"
        "held = {isinstance(w, DTensor) for w in run.model.base.get_decoder().layers.parameters()}\n"
        "assert held == {run.config.shard_base}, 'a sharded base must not stay whole after a forward'\n"
    )
    port = free_port()
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(folder), json.dumps(changes)]
    children = []
    for rank in range(2):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        children.append(
            subprocess.Popen(
                command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    for child in children:
        _, errors = child.communicate(timeout=240)
        assert child.returncode == 0, errors[-3000:]
    return folder / "adapter.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 0])  # of the LoRA: re-encoding or choice
def test_two_processes_with_a_sharded_base_train_what_one_does(tmp_path: Path, rank: int) -> None:
    options: dict[str, Any] = {"max_steps": 4, "importance_steps": 2, "adapter": {"lora_rank": rank}}
    options |= {"validate_every": 2, "validation_dialogues": 4}
    one = load_file(trainer(tmp_path / "one", **options).run())
    two = load_file(train_by_two(tmp_path / "two", shard_base=True, **options))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-3, atol=2e-5), name
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    for first, second in zip(*logs, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - {"seconds"}:
            assert first[name] == pytest.approx(second[name], rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("by", ["option", "launcher"])
def test_sharding_one_process_is_refused(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` does for an FSDP file
    with pytest.raises(ConfigError, match="several processes"):
        trainer(tmp_path, shard_base=by == "option")


def test_a_sharded_base_must_run_equally_often_on_all_processes() -> None:
    check_even(2, TrainConfig(batch_size=4), 6)
    for config, dialogues, named in (
        (TrainConfig(batch_size=3), 6, "batch_size"),
        (TrainConfig(), 5, "validation"),
        (TrainConfig(pack_tokens=99), 6, "pack_tokens"),
    ):
        with pytest.raises(ConfigError, match=named):
            check_even(2, config, dialogues)


# --- what a run writes ------------------------------------------------------------------------


def test_the_best_adapter_is_the_one_that_is_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, validate_every=1, validation_dialogues=2)
    path = run.run()
    records = read_log(tmp_path)
    best = max(records, key=lambda record: record["recovery"])
    notes = read_sealed(path, "adapter")[0]["notes"]
    assert notes["steps"] == best["step"]
    assert notes["recovery"] == pytest.approx(best["recovery"], abs=1e-4)
    assert torch.equal(
        load_file(path)["scorer.up.0.weight"], load_file(tmp_path / "best.safetensors")["scorer.up.0.weight"]
    )


@pytest.mark.parametrize("rank", [2, 0])  # of the LoRA: re-encoding or choice
@pytest.mark.parametrize("other", [{"pack_tokens": 4096}, {"gradient_checkpointing": True}], ids=str)
def test_a_packed_or_checkpointed_run_is_the_run(tmp_path: Path, rank: int, other: dict[str, Any]) -> None:
    options: dict[str, Any] = {"max_steps": 4, "importance_steps": 2, "adapter": {"lora_rank": rank}}
    plain = load_file(trainer(tmp_path / "a", **options).run())
    packed = load_file(trainer(tmp_path / "b", **options, **other).run())
    for name, tensor in plain.items():
        assert torch.allclose(tensor, packed[name], rtol=1e-3, atol=1e-4), name
    for mine, other in zip(read_log(tmp_path / "a"), read_log(tmp_path / "b"), strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-3), name


def test_tensorboard_files_hold_the_losses(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own
        trainer(tmp_path, max_steps=2, tensorboard=True).run()
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = [event.value for event in events.Scalars("importance")]
    assert values == pytest.approx([record["importance"] for record in read_log(tmp_path)])


def test_a_full_disk_is_found_out_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(FileError, match="make room"):
        trainer(tmp_path)


# --- data -------------------------------------------------------------------------------------


def write_dialogues(path: Path, count: int, name: str = "Ada") -> Path:
    text = "".join(
        json.dumps({"messages": [{**m, "content": f"{name} {i} {m['content']}"} for m in DIALOGUE]}) + "\n"
        for i in range(count)
    ).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"token_cache": str(folder / "tokens"), "data_share": 1.0, **changes})


def test_weights_decide_how_often_a_source_is_drawn(tmp_path: Path) -> None:
    format = tiny_model().format
    paths = [str(write_dialogues(tmp_path / f"{n}.jsonl", c, n)) for n, c in (("Zed", 9), ("Bob", 3))]
    shares = []
    for weights in ((), (1.0, 3.0), (0.0, 1.0)):
        mixture = Mixture(format, config_of(tmp_path, data=tuple(paths), data_weights=weights), SynthConfig())
        texts = [format.tokenizer.decode(mixture.dialogue(s, 0).token_ids) for s in range(200)]
        shares.append(sum("Zed" in text for text in texts) / 200)
    assert shares[0] == pytest.approx(0.75, abs=0.1)
    assert shares[1] == pytest.approx(0.25, abs=0.1)
    assert shares[2] == 0.0


def test_tokens_are_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    format, path = tiny_model().format, write_dialogues(tmp_path / "d.jsonl.gz", 3)
    cache = tmp_path / "tokens"

    def read() -> list[list[int]]:
        source = TokenisedSource(str(path), format, cache, 700, skip_malformed=True)
        return [source[i].token_ids for i in range(len(source))]

    first = read()
    assert first[0] == format.encode([{**m, "content": f"Ada 0 {m['content']}"} for m in DIALOGUE]).token_ids
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns
    assert read() == first
    assert made.stat().st_mtime_ns == before
    write_dialogues(path, 4)
    assert len(read()) == 4


def test_a_dialogue_of_one_exchange_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_dialogues(tmp_path / "d.jsonl", 2)
    with path.open("a") as file:
        file.write(json.dumps({"messages": DIALOGUE[:2]}) + "\n")
        file.write(json.dumps({"messages": [{"role": "user", "content": ""}]}) + "\n")
    with caplog.at_level(logging.WARNING):
        mixture = Mixture(tiny_model().format, config_of(tmp_path, data=(str(path),)), SynthConfig())
    assert mixture.skipped == 2
    assert "left out 2" in caplog.text
    assert len(mixture.sources[0]) == 2


def test_synthetic_dialogues_that_are_always_cut_are_an_error() -> None:
    with pytest.raises(DataError, match="max_tokens"):
        next(synthetic(tiny_model().format, SynthConfig(), 5))


@pytest.mark.slow
def test_a_saved_dataset_is_a_source(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        import datasets

        rows = [{"messages": DIALOGUE}, {"messages": OTHER}]
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
        found = [d["messages"] for d in read_source(str(tmp_path / "saved"))]
        assert found == [DIALOGUE, OTHER]
        datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "text"))
        with pytest.raises(DataError, match="no column 'messages'"):
            list(read_source(str(tmp_path / "text")))


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (TrainConfig, {"data": ("a", "b"), "data_weights": (1.0,)}),
        (TrainConfig, {"data": ("a",), "data_weights": (0.0,)}),
        (TrainConfig, {"lr": math.nan}),
        (TrainConfig, {"seed": -1}),
        (PlanConfig, {"ratio_min": 0.9, "ratio_max": 0.5}),
        (PlanConfig, {"segment_share": 0.8, "shared_share": 0.3}),
        (PlanConfig, {"candidates": ()}),
        (PlanConfig, {"group_tokens": (64,), "split_tokens": (32,)}),
    ],
)
def test_options_that_make_no_sense_are_refused(cls: type, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        cls(**changes)
