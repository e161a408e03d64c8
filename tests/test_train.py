"""Training: what is learned is learned from the right rows, and a killed run goes on as if it had not been."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError, DataError, FileError, NumericalError
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.training import losses, objectives, rounds
from sonic_kv.training import trainer as engine
from sonic_kv.training.damage import measure
from sonic_kv.training.objectives import DamageObjective, Run, predicting, token_scores
from sonic_kv.training.options import PlanConfig, TrainConfig
from sonic_kv.training.pace import EXPECTED, Pace
from sonic_kv.training.plan import Plan, draw_ends, draw_plan
from sonic_kv.training.teacher import run_teacher
from sonic_kv.training.trainer import MakeObjective, Trainer

QUICK: dict[str, Any] = {
    "data_share": 0.0,
    "max_steps": 6,
    "importance_steps": 2,
    "reuse": 1,
    "batch_size": 2,
    "max_tokens": 200,
    "log_every": 1,
    "save_every": 2,
    "bf16": False,
    "scale_dialogues": 0,
}


def trainer(
    folder: Path,
    *,
    adapter: dict[str, Any] | None = None,
    plan: PlanConfig | None = None,
    objective: MakeObjective = DamageObjective,
    **changes: Any,
) -> Trainer:
    model = tiny_model(adapter=False, max_position_embeddings=4096)
    shape = AdapterConfig(**{"lora_rank": 2, "scorer_hidden": 8, **(adapter or {})})
    synth = SynthConfig(min_exchanges=3, max_exchanges=4)
    options = {**QUICK, "out": str(folder), "token_cache": str(folder / "tokens"), **changes}
    return Trainer(model, shape, synth, TrainConfig(**options), plan, objective)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_killed_run_resumes_to_the_same_adapter_and_log(tmp_path: Path) -> None:
    whole = load_file(trainer(tmp_path / "whole").run())
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_train import trainer\n"
        "trainer(Path(sys.argv[2])).run(lambda r: (print(r['step'], flush=True), time.sleep(0.3)))\n"
    )
    folder = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    while child.stdout.readline().strip() != "5":
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    resumed = trainer(folder)
    assert resumed.step == 4
    tensors = load_file(resumed.run())
    assert tensors.keys() == whole.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, whole[name]), name
    logs = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(p)]
        for p in (folder, tmp_path / "whole")
    ]
    assert logs[0] == logs[1]
    assert [record["step"] for record in logs[0]] == [1, 2, 3, 4, 5, 6]


def test_training_leaves_the_base_untouched_and_moves_every_part_of_the_adapter(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = {name: p.clone() for name, p in run.model.base.named_parameters()}
    start = {name: p.clone() for name, p in run.adapter.named_parameters()}
    run.run()
    assert all(torch.equal(before[name], p) for name, p in run.model.base.named_parameters())
    moved = {
        name.split(".")[0] for name, p in run.adapter.named_parameters() if not torch.equal(start[name], p)
    }
    assert {"scorer", "lora", "embedding"} <= moved


def test_trained_adapter_loads_into_a_session(tmp_path: Path) -> None:
    path = trainer(tmp_path).run()
    base = tiny_base(max_position_embeddings=4096)
    model = SonicModel(base, tiny_tokenizer(), Adapter.load(base, path.parent))
    chat = ChatSession(model, Budget(compression_ratio=0.8), config=SessionConfig(min_segment_tokens=16))
    chat.extend(DIALOGUE)
    assert chat.stats.memory == round(0.2 * (chat.stats.logical_tokens - chat.stats.prefix))


@pytest.mark.parametrize("form", ["anchored", "learned"])
def test_a_few_steps_on_one_batch_lower_both_losses(tmp_path: Path, form: str) -> None:
    run = trainer(tmp_path, adapter={"form": form}, max_steps=40, importance_steps=0, lr=3e-3, scorer_lr=1e-2)
    batch = [run.data.dialogue(0, place) for place in range(2)]
    run.data.dialogue = lambda step, place: batch[place]  # type: ignore[method-assign]

    def measure() -> dict[str, float]:
        drawn = [
            run.objective.backward(run.objective.read([encoded], [random.Random(seed)], scorer=True), 1.0)
            for encoded in batch
            for seed in range(4)
        ]
        run.optimizer.zero_grad()
        return {name: sum(found.get(name, 0.0) for found in drawn) for name in ("importance", "distillation")}

    before = measure()
    run.run()
    after = measure()
    assert after["importance"] < before["importance"] - 0.05
    assert after["distillation"] < 0.95 * before["distillation"]


def objective_of(plan: PlanConfig, **options: Any) -> DamageObjective:
    base = tiny_base(max_position_embeddings=4096)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    return DamageObjective(model, model.adapter, plan, Run(**options))


def plans_of(plan: PlanConfig, seeds: Iterable[int]) -> Iterator[tuple[Encoded, list[int], Plan]]:
    """A dialogue, its segments, and a plan for each seed."""
    objective = objective_of(plan)
    encoded = objective.model.format.encode(DIALOGUE)
    ends = draw_ends(encoded, plan, random.Random(0))
    (teacher,) = run_teacher(objective.model, [torch.tensor(encoded.token_ids)])
    scores = token_scores(objective.adapter, teacher)
    for seed in seeds:
        yield encoded, ends, draw_plan(objective.adapter, scores, encoded, ends, plan, random.Random(seed))


SIZES: dict[str, Any] = {"group_tokens": (16,), "split_tokens": (40,), "ratio_jitter": 0.0}


def test_what_is_kept_whole_is_the_base() -> None:
    plan = PlanConfig(ratio_min=0.0, ratio_max=0.0, raw_share=1.0, **SIZES)
    objective = objective_of(plan)
    encoded = objective.model.format.encode(DIALOGUE)
    for seed in range(5):
        lessons = objective.read([encoded], [random.Random(seed)], scorer=False)
        with objective.distillation(lessons) as loss:
            assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["segment", "per_head", "shared"])
def test_exactly_the_drawn_number_of_entries_is_kept(kind: str) -> None:
    shares = {"segment_share": 0.0, "shared_share": 0.0}
    shares |= {f"{kind}_share": 1.0} if kind != "per_head" else {}
    plan = PlanConfig(ratio_min=0.8, ratio_max=0.8, **SIZES, **shares)
    for encoded, ends, drawn in plans_of(plan, range(20)):
        for number, end in enumerate(ends, start=2):
            closed = ((drawn.layout.segment < number) & (drawn.layout.segment > 0))[:, None]
            held = torch.stack([(closed & (life >= number)).sum(-1) for life in drawn.lifetime])
            expected = max(round(0.2 * (end - encoded.prefix_length)), number - 1)
            assert held.sum() == expected * held.numel()
            assert bool((held == expected).all()) is (kind != "shared")


class Scores(torch.nn.Module):
    """In a scorer's place: these scores, and no recency."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores  # (layers, G, T)

    def forward(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.scores[layer : layer + 1]

    def recency(self, layer: int, distance: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(distance, dtype=torch.float32)


def test_importance_is_zero_for_the_true_share_of_damage_in_all_heads_together() -> None:
    plan = PlanConfig(**SIZES)
    model = tiny_model()
    encoded = model.format.encode(DIALOGUE)
    ids, ends = torch.tensor(encoded.token_ids), draw_ends(encoded, plan, random.Random(0))[:1]
    (found,) = measure(model, [ids], [ends], [predicting(encoded, ends[0])], [0])

    def loss(scores: torch.Tensor) -> float:
        value = losses.importance(Scores(scores), found, encoded.prefix_length, ends)  # type: ignore[arg-type]
        assert value is not None
        return float(value)

    best = 0.5 * found.after(1).clamp_min(losses.LEAST).log()
    assert loss(best) == pytest.approx(0.0, abs=1e-5)
    assert loss(best + 3.0) == pytest.approx(0.0, abs=1e-5)  # one constant for all changes nothing
    one_head = torch.zeros_like(best)
    one_head[0, 0] = 3.0
    assert loss(best + one_head) > 1e-3  # one for a head does
    assert all(loss(torch.randn_like(best)) > 1e-2 for _ in range(5))


def test_a_long_dialogue_is_learned_from_at_some_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(PlanConfig(**SIZES))
    encoded = objective.model.format.encode(DIALOGUE)
    (whole,) = objective.read([encoded], [random.Random(0)])
    monkeypatch.setattr(objectives, "MOST_TOKENS", 20)
    (some,) = objective.read([encoded], [random.Random(0)])
    assert whole.damage is not None
    assert some.damage is not None
    at = some.damage.positions
    assert len(at) == len(set(at.tolist())) == 20 < len(whole.damage.positions)
    assert torch.equal(some.damage.by_segment, whole.damage.by_segment[..., at])
    for part, full in zip(some.damage.values, whole.damage.values, strict=True):
        assert torch.equal(part, full[:, :, at])
    first, second = (objective.importance([lesson]).item() for lesson in (whole, some))
    assert 0.0 < second != first > 0.0


def test_only_replies_count_where_there_are_any() -> None:
    encoded = tiny_model().format.encode(DIALOGUE)
    first = encoded.exchange_ends[0]
    rows = predicting(encoded, first).tolist()
    assert rows == [t for t in range(first, len(encoded.token_ids) - 1) if encoded.assistant[t + 1]] != []
    silent = replace(encoded, assistant=[False] * len(encoded.token_ids))
    assert predicting(silent, first).tolist() == list(range(first, len(encoded.token_ids)))


def test_distillation_is_zero_for_equal_logits_and_mixes_both_directions() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 9), torch.randn(5, 9)
    assert float(losses.distillation(a, a, 0.7)) == pytest.approx(0.0, abs=1e-6)
    kl = lambda p, q: float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean())  # noqa: E731
    assert float(losses.distillation(a, b, 0.7)) == pytest.approx(0.7 * kl(b, a) + 0.3 * kl(a, b), rel=1e-5)


def test_scorer_learns_without_touching_the_lora() -> None:
    objective = objective_of(PlanConfig(**SIZES))
    encoded = objective.model.format.encode(DIALOGUE)
    found = objective.backward(objective.read([encoded], [random.Random(0)]), 1.0, student=False)
    assert found.keys() == {"importance"}
    for name, weight in objective.adapter.named_parameters():
        assert (weight.grad is not None) == name.startswith("scorer."), name


def test_nan_loss_stops_with_the_batch_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with torch.no_grad():
        next(run.model.base.parameters()).fill_(math.nan)
    with pytest.raises(NumericalError, match="bad-step-1"):
        run.run()
    assert json.loads((tmp_path / "bad-step-1.json").read_text())


def test_a_gradient_that_is_not_finite_stops_before_the_adapter_is_touched(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = {name: weight.clone() for name, weight in run.adapter.named_parameters()}
    run.adapter.scorer.log_rate.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NumericalError, match="loss or gradient of step 1"):
        run.run()
    assert all(torch.equal(before[name], weight) for name, weight in run.adapter.named_parameters())


def test_a_torn_last_line_of_the_log_does_not_stop_resuming(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    log = tmp_path / "log.jsonl"
    lines = log.read_text()
    log.write_text(lines + '{"step": 7, "tok')
    trainer(tmp_path)
    assert log.read_text() == lines


def test_a_folder_that_cannot_be_written_fails_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        trainer(tmp_path / "file" / "run")


def test_a_plan_that_keeps_a_whole_segment_keeps_it_raw() -> None:
    plan = PlanConfig(ratio_min=0.0, ratio_max=0.0, raw_share=0.0, **SIZES)
    ((_, _, drawn),) = plans_of(plan, [0])
    assert not drawn.layout.nexus.any()


def test_other_options_do_not_continue_a_run(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(ConfigError, match=r"other options \(lr: 0\.\d+, now 0\.5\)"):
        trainer(tmp_path, lr=0.5)


def test_files_without_a_dialogue_are_an_error_before_training(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps({"messages": DIALOGUE[:2]}) + "\n")
    with pytest.raises(DataError, match=r"no dialogue to train on in .*short\.jsonl"):
        trainer(tmp_path, data=(str(path),), data_share=0.5)


def test_without_files_dialogues_are_synthetic(tmp_path: Path) -> None:
    first, second = (trainer(tmp_path / str(share), data_share=share) for share in (0.0, 1.0))
    assert first.data.dialogue(0, 0) == second.data.dialogue(0, 0)


def test_log_has_one_line_a_step(tmp_path: Path) -> None:
    start = time.perf_counter()
    trainer(tmp_path).run()
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 7))
    assert all(0 < record["seconds"] < time.perf_counter() - start for record in records)
    assert all("distillation" not in record for record in records[:2])


def test_scorer_and_lora_each_have_a_schedule_of_their_own(tmp_path: Path) -> None:
    changes = {"max_steps": 8, "importance_steps": 4, "warmup_steps": 2, "lr": 0.4, "scorer_lr": 0.8}
    trainer(tmp_path, **changes).run()
    rates = [(r["scorer_lr"], r["lr"]) for r in read_log(tmp_path) if "lr" in r]
    scorer, lora = zip(*rates, strict=True)
    assert scorer == pytest.approx((0.4, 0.6, 0.4, 0.2, 0, 0, 0, 0))
    assert lora == pytest.approx((0, 0, 0, 0, 0.2, 0.3, 0.2, 0.1))


def test_the_scorer_is_trained_alone_for_three_fifths_unless_said_otherwise(tmp_path: Path) -> None:
    def alone(**changes: Any) -> int:
        return trainer(tmp_path / str(len(list(tmp_path.iterdir()))), max_steps=10, **changes).alone

    assert alone(importance_steps=None) == 6
    assert alone(importance_steps=0) == 0
    assert alone(importance_steps=None, adapter={"lora_rank": 0}) == 8  # then it learns from its choices
    with pytest.raises(ConfigError, match="importance_steps=-1"):
        TrainConfig(importance_steps=-1)


def test_without_a_lora_the_scorer_learns_from_its_choices_then(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "max_steps": 5,
        "importance_steps": 3,
        "warmup_steps": 1,
        "lr": 0.1,
        "scorer_lr": 0.6,
    }
    run = trainer(tmp_path, adapter={"lora_rank": 0}, **changes)
    found: list[dict[str, torch.Tensor]] = []
    run.run(lambda _: found.append({n: w.clone() for n, w in run.adapter.scorer.named_parameters()}))
    records = read_log(tmp_path)
    assert [("importance" in r, "choice" in r) for r in records] == [(True, False)] * 3 + [(False, True)] * 2
    assert [r["scorer_lr"] for r in records] == pytest.approx([0.6, 0.4, 0.2, 0.1, 0.05])
    assert all(not torch.equal(weight, found[4][n]) for n, weight in found[3].items() if "norm" not in n)
    assert json.loads((tmp_path / "progress.json").read_text())["phase"] == "choice"


@pytest.mark.parametrize("stop", [2, 3, 4])  # before the switch to choices, at it, and after it
def test_a_run_that_learns_from_its_choices_resumes_to_the_same_adapter(tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {
        "adapter": {"lora_rank": 0},
        "max_steps": 5,
        "importance_steps": 3,
        "save_every": 1,
    }
    whole = load_file(trainer(tmp_path / "whole", **options).run())

    class Stopped(Exception):
        pass

    def look(record: dict[str, Any]) -> None:
        if record["step"] == stop + 1:  # its checkpoint is not written
            raise Stopped

    with pytest.raises(Stopped):
        trainer(tmp_path / "half", **options).run(look)
    resumed = trainer(tmp_path / "half", **options)
    assert resumed.step == stop
    for name, tensor in load_file(resumed.run()).items():
        assert torch.equal(tensor, whole[name]), name


def test_the_scorer_rests_when_its_steps_are_over(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, importance_steps=2, save_every=2)
    found: list[dict[str, torch.Tensor]] = []
    run.run(lambda _: found.append({n: w.clone() for n, w in run.adapter.scorer.named_parameters()}))
    assert any(not torch.equal(weight, found[1][n]) for n, weight in found[0].items())
    assert all(torch.equal(weight, found[3][n]) for n, weight in found[1].items())


@pytest.mark.parametrize("times", [1, 3])
def test_a_batch_serves_several_steps_and_is_read_once(times: int) -> None:
    steps = range(3 * rounds.BATCHES * times)
    found = [rounds.source(step, times, 7) for step in steps]
    assert Counter(found) == dict.fromkeys(range(3 * rounds.BATCHES), times)
    firsts = [step for step in steps if found[step] not in found[:step]]
    assert firsts == [step for step in steps if rounds.is_new(step, times)]
    for step in steps:  # what is kept when a round begins is of no use
        if rounds.begins(step, times):
            assert not set(found[:step]) & set(found[step:])


def test_the_base_runs_over_a_dialogue_once_and_a_resumed_run_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "BATCHES", 4)
    steps, reuse = 2 * rounds.BATCHES + 2, 2
    options = {"max_steps": steps, "importance_steps": steps, "adapter": {"lora_rank": 0}, "reuse": reuse}
    whole = load_file(trainer(tmp_path / "whole", **options, save_every=100).run())
    tokens = [record["tokens"] for record in read_log(tmp_path / "whole")]
    assert [count > 0 for count in tokens] == [rounds.is_new(step, reuse) for step in range(steps)]

    class Stopped(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == rounds.BATCHES + 3:
            raise Stopped

    half = trainer(tmp_path / "half", **options, save_every=rounds.BATCHES + 2)
    with pytest.raises(Stopped):
        half.run(stop)
    resumed = trainer(tmp_path / "half", **options, save_every=rounds.BATCHES + 2)
    assert resumed.step == rounds.BATCHES + 2
    for name, tensor in load_file(resumed.run()).items():
        assert torch.equal(tensor, whole[name]), name


def test_progress_stands_in_a_file_with_the_time_that_is_left(tmp_path: Path) -> None:
    run = trainer(tmp_path, validate_every=3, validation_dialogues=2, scale_dialogues=2)
    seen: list[dict[str, Any]] = []

    def look(record: dict[str, Any]) -> None:
        seen.append(record)
        assert json.loads((tmp_path / "progress.json").read_text()) == record

    run.run(look)
    assert [r["phase"] for r in seen] == ["importance"] * 2 + ["re-encoding"] * 4 + ["scale"] * 2
    assert [r["step"] for r in seen] == [*range(1, 7), 6, 6]
    assert all(r["max_steps"] == 6 and r["tokens_per_second"] > 0 for r in seen)
    assert all(r["remaining"] > 0 for r in seen[:-1])
    assert seen[-1]["remaining"] == 0


def test_what_is_left_counts_every_phase() -> None:
    pace = Pace()
    assert pace.remaining({"scorer": 3}) is None
    assert pace.remaining({"scorer": 0}) == 0
    for seconds in (2.0, 2.0, 9.0):  # one that was interrupted counts little
        pace.note("reading", seconds)
    assert pace.remaining({"reading": 3}) == 6.0
    expected = 3 * 2.0 + 4 * 2.0 * EXPECTED["student"] + 5 * 2.0 * EXPECTED["validation"]
    assert pace.remaining({"reading": 3, "student": 4, "validation": 5}) == pytest.approx(expected)
    pace.note("validation", 8.0, 16)
    assert pace.remaining({"validation": 4}) == 2.0


@pytest.mark.parametrize("has_instructions", [True, False])
def test_products_are_in_bf16_where_the_device_has_instructions_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    monkeypatch.setattr(engine, "multiplies_bf16", lambda device: has_instructions)
    assert trainer(tmp_path / "auto", bf16=None).how.bf16 == has_instructions
    assert not trainer(tmp_path / "off", bf16=False).how.bf16


@pytest.mark.processor
def test_instructions_of_the_processor_are_known() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo")
    assert engine.multiplies_bf16(torch.device("cpu")) == ("avx512_bf16" in flags.read_text().split())
