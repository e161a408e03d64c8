"""Training on other roads: packed, checkpointed, by FlexAttention, on two processes; losses and data."""

import gzip
import json
import logging
import math
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train import lesson_of, read_log, trainer
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.data.dialogues import read_source
from sonic_kv.data.mixture import Mixture, synthetic
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.tokens import TokenisedSource
from sonic_kv.errors import ConfigError, DataError, FileError
from sonic_kv.files import read_sealed
from sonic_kv.model import layout as lay
from sonic_kv.model.model import SonicModel
from sonic_kv.training import losses
from sonic_kv.training.objectives import Objective, raw_rows
from sonic_kv.training.options import LossConfig, PlanConfig, TrainConfig
from sonic_kv.training.plan import draw_plan
from sonic_kv.training.trainer import check_even

EVERY_LOSS = LossConfig(
    distillation_need=3.0,
    ce_weight=0.5,
    attention_weight=1.0,
    output_weight=1.0,
    ignored_weight=1.0,
    ignored_share=1.0,
    coverage_weight=1.0,
    reconstruction_weight=0.5,
    observed_layers=2,
)
PLAN = PlanConfig(ratio_min=0.6, raw_share=0.0, group_tokens=(16,), split_tokens=(48,))
OTHER = [*DIALOGUE[2:], *DIALOGUE[:2]]


def objective_of(loss: LossConfig = EVERY_LOSS, plan: PlanConfig = PLAN, **options: Any) -> Objective:
    torch.manual_seed(0)
    base = tiny_base(max_position_embeddings=4096)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    return Objective(model, model.adapter, loss, plan, **options)


def gradients(
    objective: Objective, groups: list[list[int]]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of two dialogues, in the given groups of one forward each."""
    objective.adapter.zero_grad(set_to_none=True)
    encoded = [objective.model.format.encode(messages) for messages in (DIALOGUE, OTHER)]
    sums: dict[str, float] = {}
    for group in groups:
        rngs = [random.Random(place) for place in group]
        found = objective.backward([encoded[i] for i in group], rngs, 0.5)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    found_gradients = {
        n: w.grad.clone() for n, w in objective.adapter.named_parameters() if w.grad is not None
    }
    return sums, found_gradients


def assert_same(first: Any, second: Any) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-4, abs=1e-6)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert torch.allclose(gradient, second[1][name], rtol=1e-3, atol=1e-5), name


def test_every_loss_is_found_and_reaches_the_lora() -> None:
    sums, found = gradients(objective_of(), [[0], [1]])
    names = {f.removesuffix("_weight") for f in vars(EVERY_LOSS) if f.endswith("_weight")}
    assert sums.keys() == names
    assert all(value > 0 for value in sums.values())
    for name in names - {"importance", "ce", "distillation"}:
        only = {f"{other}_weight": 0.0 for other in names - {name}}
        _, alone = gradients(objective_of(replace(EVERY_LOSS, **only)), [[0]])
        assert any(bool(g.abs().sum() > 0) for n, g in alone.items() if n.startswith("lora.")), name
    assert any(n.startswith("lora.") for n in found)


def test_losses_in_chunks_are_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients(objective_of(), [[0], [1]])
    monkeypatch.setattr(losses, "CHUNK", 7)
    assert_same(gradients(objective_of(), [[0], [1]]), whole)


def test_packed_dialogues_learn_what_single_ones_do() -> None:
    loss = replace(EVERY_LOSS, observed_layers=3)  # all: which layers are observed is drawn once a forward
    loss = replace(loss, reconstruction_weight=0.0, coverage_weight=0.0)  # they draw on, in another order
    assert_same(gradients(objective_of(loss), [[0], [1]]), gradients(objective_of(loss), [[0, 1]]))


def test_checkpointing_gives_equal_gradients() -> None:
    assert_same(
        gradients(objective_of(), [[0], [1]]), gradients(objective_of(checkpointing=True), [[0], [1]])
    )


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_flex_attention_is_sdpa(family: str) -> None:
    torch.manual_seed(0)
    base = tiny_base(family)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    objective = Objective(model, model.adapter, LossConfig(), PLAN)
    (lesson,) = objective.read([model.format.encode(DIALOGUE)], [random.Random(0)])
    plan = draw_plan(
        model.adapter, objective.scores(lesson.teacher), lesson.encoded, lesson.ends, PLAN, random.Random(3)
    )
    assert plan.layout.nexus.any()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not compiled: it says so
        dense, flex = (
            model.one_pass(lesson.ids[None], plan.layout, plan.lifetime, flex=flex) for flex in (False, True)
        )
    assert torch.allclose(dense, flex, atol=1e-5)


def test_block_mask_rule_is_the_visibility_mask() -> None:
    objective, lesson = lesson_of(LossConfig(), PLAN)
    plan = draw_plan(
        objective.adapter,
        objective.scores(lesson.teacher),
        lesson.encoded,
        lesson.ends,
        PLAN,
        random.Random(1),
    )
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
    objective, lesson = lesson_of(LossConfig(), PLAN)
    plan = draw_plan(
        objective.adapter,
        objective.scores(lesson.teacher),
        lesson.encoded,
        lesson.ends,
        PLAN,
        random.Random(1),
    )
    whole = lay.visible(plan.layout, plan.lifetime[0])
    rows = raw_rows(plan.layout, torch.arange(5, 25))
    assert torch.equal(lay.visible(plan.layout, plan.lifetime[0], rows), whole[:, :, rows])


def test_need_is_nothing_where_history_changes_nothing() -> None:
    _, lesson = lesson_of(LossConfig(), PLAN)
    need = lesson.need
    assert need is not None
    assert float(need[: lesson.first].abs().max()) < 1e-5  # the first segment has no history
    assert float(need[lesson.first :].min()) > -1e-6
    assert float(need[lesson.first :].max()) > 1e-3


def test_losses_on_tiny_tensors() -> None:
    mass = losses.segment_mass(torch.tensor([[0.5, 0.2, 0.3]]), torch.tensor([0, 1, 1]), 3)
    assert mass.tolist() == [[0.5, 0.5, 0.0]]
    teacher, student = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.6, 0.4]])
    expected = 0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(0.8 / 0.4)
    assert float(losses.attention_mass(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.ignored(student, teacher, 1.0)) == pytest.approx(0.16)
    assert float(losses.ignored(student, teacher, 0.5)) == pytest.approx(0.0)
    o = torch.tensor([[3.0, 4.0]])
    assert float(losses.attention_output(torch.zeros_like(o), o)) == pytest.approx(1.0)
    logits, targets = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    logits[0, 0] = 50.0
    weights = torch.tensor([1.0, 0.0, 1.0])
    assert float(losses.cross_entropy(logits, targets, weights)) == pytest.approx(math.log(4) / 2)
    assert float(losses.cross_entropy(logits, targets, torch.zeros(3))) == 0.0
    looked = torch.tensor([[[[0.2, 0.6], [0.2, 0.2]]]])  # two Nexus tokens, two tokens of the segment
    assert float(losses.coverage(looked, torch.tensor([[1 / 3, 2 / 3]]))) == pytest.approx(0.0, abs=1e-6)


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
def test_two_processes_with_a_sharded_base_train_what_one_does(tmp_path: Path) -> None:
    options = {"max_steps": 4, "importance_steps": 2, "validate_every": 2, "validation_dialogues": 4}
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


def test_a_packed_run_is_the_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 3, "importance_steps": 0, "bf16": False}
    plain = load_file(trainer(tmp_path / "a", **options).run())
    packed = load_file(trainer(tmp_path / "b", **options, pack_tokens=4096).run())
    for name, tensor in plain.items():
        # A constant that is added to all scores of a head changes no loss: the gradient of these biases is rounding,
        # which differs between processors, and Adam makes full steps of it.
        if not re.fullmatch(r"scorer\.down\.\d+\.bias", name):
            assert torch.allclose(tensor, packed[name], rtol=1e-3, atol=1e-4), name
    for mine, other in zip(read_log(tmp_path / "a"), read_log(tmp_path / "b"), strict=True):
        for name in ("importance", "distillation", "grad_norm"):
            assert mine.get(name) == pytest.approx(other.get(name), rel=1e-4), name


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
        (TrainConfig, {"attention": "eager"}),
        (TrainConfig, {"seed": -1}),
        (LossConfig, {"importance_norm": 0.5}),
        (LossConfig, {"ce_weight": -1.0}),
        (LossConfig, {"coverage_weight": math.inf}),
        (PlanConfig, {"ratio_min": 0.9, "ratio_max": 0.5}),
        (PlanConfig, {"random_share": 0.8, "segment_share": 0.3}),
        (PlanConfig, {"candidates": ()}),
        (PlanConfig, {"group_tokens": (64,), "split_tokens": (32,)}),
    ],
)
def test_options_that_make_no_sense_are_refused(cls: type, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        cls(**changes)
