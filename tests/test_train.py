"""Training: what is learned is learned from the right rows, and a killed run goes on as if it had not been."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
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
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.training import losses
from sonic_kv.training import trainer as engine
from sonic_kv.training.calibration import divergences
from sonic_kv.training.objectives import Objective
from sonic_kv.training.options import LossConfig, PlanConfig, TrainConfig
from sonic_kv.training.plan import draw_plan
from sonic_kv.training.trainer import Trainer
from sonic_kv.training.validation import session_plan

QUICK: dict[str, Any] = {
    "data_share": 0.0,
    "max_steps": 6,
    "importance_steps": 2,
    "calibration_rounds": 0,
    "calibration_dialogues": 12,
    "batch_size": 2,
    "max_tokens": 200,
    "log_every": 1,
    "save_every": 2,
    "bf16": False,
}


def trainer(
    folder: Path,
    *,
    adapter: dict[str, Any] | None = None,
    loss: LossConfig | None = None,
    plan: PlanConfig | None = None,
    **changes: Any,
) -> Trainer:
    model = tiny_model(adapter=False, max_position_embeddings=4096)
    shape = AdapterConfig(**{"lora_rank": 2, "scorer_hidden": 8, **(adapter or {})})
    synth = SynthConfig(min_exchanges=3, max_exchanges=4)
    options = {**QUICK, "out": str(folder), "token_cache": str(folder / "tokens"), **changes}
    return Trainer(model, shape, synth, TrainConfig(**options), loss, plan)


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
            run.objective.backward([encoded], [random.Random(seed)], 1.0)
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


def lesson_of(
    loss: LossConfig, plan: PlanConfig, messages: list[dict[str, str]] = DIALOGUE, **options: Any
) -> tuple[Objective, Any]:
    base = tiny_base(max_position_embeddings=4096)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    objective = Objective(model, model.adapter, loss, plan, **options)
    (lesson,) = objective.read([model.format.encode(messages)], [random.Random(0)])
    return objective, lesson


SIZES: dict[str, Any] = {"group_tokens": (16,), "split_tokens": (40,), "ratio_jitter": 0.0}


def test_what_is_kept_whole_is_the_base() -> None:
    plan = PlanConfig(ratio_min=0.0, ratio_max=0.0, raw_share=1.0, **SIZES)
    names = ("distillation", "attention", "output", "ignored")
    loss = LossConfig(**{f"{name}_weight": 1.0 for name in names}, observed_layers=3)
    objective, lesson = lesson_of(loss, plan)
    for seed in range(5):
        with objective.compressed([replace(lesson, rng=random.Random(seed))]) as named:
            assert named.keys() == set(names)
            for name, value in named.items():
                assert float(value.detach()) == pytest.approx(0.0, abs=1e-5), name


@pytest.mark.parametrize("kind", ["random", "segment", "global", "pooled"])
def test_exactly_the_drawn_number_of_entries_is_kept(kind: str) -> None:
    shares = {"random_share": 0.0, "segment_share": 0.0, "pooled_share": 0.0}
    shares |= {f"{kind}_share": 1.0} if kind != "global" else {}
    plan = PlanConfig(ratio_min=0.8, ratio_max=0.8, **SIZES, **shares)
    objective, lesson = lesson_of(LossConfig(), plan)
    prefix = lesson.encoded.prefix_length
    for seed in range(20):
        drawn = draw_plan(
            objective.adapter,
            objective.scores(lesson.teacher),
            lesson.encoded,
            lesson.ends,
            plan,
            random.Random(seed),
        )
        for number, end in enumerate(lesson.ends, start=2):
            closed = ((drawn.layout.segment < number) & (drawn.layout.segment > 0))[:, None]
            held = torch.stack([(closed & (life >= number)).sum(-1) for life in drawn.lifetime])
            expected = max(round(0.2 * (end - prefix)), number - 1)
            assert held.sum() == expected * held.numel()
            assert bool((held == expected).all()) is (kind != "pooled")


def test_a_lowered_budget_stays_low() -> None:
    plan = PlanConfig(ratio_min=0.3, ratio_max=0.9, shrink_share=1.0, noise=(0.0,), **SIZES)
    objective, lesson = lesson_of(LossConfig(), plan)
    shares = []
    for seed in range(40):
        drawn = draw_plan(
            objective.adapter,
            objective.scores(lesson.teacher),
            lesson.encoded,
            lesson.ends,
            plan,
            random.Random(seed),
        )
        last = len(lesson.ends) + 1
        kept = int(((drawn.layout.segment[0] > 0) & (drawn.lifetime[0][0, 0] >= last)).sum())
        kept -= int((drawn.layout.segment[0] == last).sum())
        shares.append(kept / (lesson.ends[-1] - lesson.encoded.prefix_length))
    assert sum(shares) / len(shares) < 0.35  # without the lowering the mean is 0.4


def test_importance_loss_is_least_for_the_true_attention() -> None:
    torch.manual_seed(0)
    target = torch.rand(2, 7).softmax(-1)
    best = losses.importance([target.log()], [target])
    assert float(best) == pytest.approx(float(-(target * target.log()).sum(-1).mean()))
    assert all(float(losses.importance([torch.randn(2, 7)], [target])) > float(best) for _ in range(20))


def test_attention_targets_ignore_queries_inside_the_history() -> None:
    paid = torch.zeros(1, 1, 3, 6)
    paid[0, 0, 0, 1] = 1.0  # query at 2, still in the history
    paid[0, 0, 1, 2] = 0.25
    paid[0, 0, 2, 2] = paid[0, 0, 2, 3] = 0.5
    queries = torch.tensor([2, 4, 5])

    def target(norm: float, weights: torch.Tensor | None = None) -> list[float]:
        first, second = losses.attention_targets(paid, queries, [2, 4], 1, norm, weights)
        assert first.shape == (1, 1)
        found: list[float] = second[0].tolist()
        return found

    assert target(math.inf) == [0.0, 0.5, 0.5]
    assert target(1.0) == pytest.approx([0.0, 0.6, 0.4])
    assert target(2.0) == pytest.approx([0.0, 5**0.5 / (5**0.5 + 2), 2 / (5**0.5 + 2)])
    assert target(math.inf, torch.tensor([9.0, 4.0, 1.0])) == pytest.approx([0.0, 2 / 3, 1 / 3])


def test_distillation_is_zero_for_equal_logits_and_mixes_both_directions() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 9), torch.randn(5, 9)
    assert float(losses.distillation(a, a, 0.7)) == pytest.approx(0.0, abs=1e-6)
    kl = lambda p, q: float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean())  # noqa: E731
    assert float(losses.distillation(a, b, 0.7)) == pytest.approx(0.7 * kl(b, a) + 0.3 * kl(a, b), rel=1e-5)


def test_scorer_learns_without_touching_the_lora() -> None:
    objective, lesson = lesson_of(LossConfig(), PlanConfig(**SIZES))
    objective.importance(lesson).backward()
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
    objective, lesson = lesson_of(LossConfig(), plan)
    scores = objective.scores(lesson.teacher)
    drawn = draw_plan(objective.adapter, scores, lesson.encoded, lesson.ends, plan, random.Random(0))
    assert not drawn.layout.nexus.any()


def test_other_options_do_not_continue_a_run(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(ConfigError, match="other options"):
        trainer(tmp_path, lr=0.5)


def test_files_without_a_dialogue_are_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data_share"):
        trainer(tmp_path, data_share=0.5)


def test_log_has_one_line_a_step(tmp_path: Path) -> None:
    start = time.perf_counter()
    trainer(tmp_path).run()
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 7))
    assert all(0 < record["seconds"] < time.perf_counter() - start for record in records)
    assert all("distillation" not in record for record in records[:2])


def test_scorer_and_lora_each_have_a_schedule_of_their_own(tmp_path: Path) -> None:
    changes = {"max_steps": 8, "importance_steps": 4, "warmup_steps": 2, "lr": 0.4, "scorer_lr": 0.8}
    trainer(tmp_path, calibration_rounds=1, **changes).run()
    rates = [(r["scorer_lr"], r["lr"]) for r in read_log(tmp_path) if "lr" in r]
    scorer, lora = zip(*rates, strict=True)
    assert scorer == pytest.approx((0.4, 0.6, 0.4, 0.2, 0, 0, 0, 0))
    assert lora == pytest.approx((0, 0, 0, 0, 0.2, 0.3, 0.2, 0.1))


def test_the_scorer_is_trained_alone_for_three_fifths_unless_said_otherwise() -> None:
    assert TrainConfig(max_steps=10).scorer_alone == 6
    assert TrainConfig(max_steps=10, importance_steps=0).scorer_alone == 0
    with pytest.raises(ConfigError, match="importance_steps=-1"):
        TrainConfig(importance_steps=-1)


def test_without_a_lora_every_step_is_the_scorers_and_calibration_comes_last(tmp_path: Path) -> None:
    changes = {"max_steps": 3, "importance_steps": None, "calibration_rounds": 1, "calibration_dialogues": 3}
    trainer(tmp_path, adapter={"lora_rank": 0}, **changes).run()
    found = [(r["step"], "round" if "round" in r else "importance") for r in read_log(tmp_path)]
    assert sorted(found) == [(1, "importance"), (2, "importance"), (3, "importance"), (3, "round")]
    assert all(r["scorer_lr"] > 0 for r in read_log(tmp_path) if "scorer_lr" in r)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_products_are_in_bf16_where_the_device_has_instructions_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    monkeypatch.setattr(engine, "multiplies_bf16", lambda device: has_instructions)
    assert trainer(tmp_path / "auto", bf16=None).objective.bf16 == has_instructions
    assert not trainer(tmp_path / "off", bf16=False).objective.bf16


def test_instructions_of_the_processor_are_known() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo")
    assert engine.multiplies_bf16(torch.device("cpu")) == ("avx512_bf16" in flags.read_text().split())


def test_calibration_makes_heads_comparable_once_and_for_all(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, importance_steps=2, calibration_rounds=2, save_every=1)
    lessons = [run.objective.read([run.data.dialogue(9, n)], [random.Random(n)])[0] for n in range(4)]
    reader = Objective(run.model, run.adapter, LossConfig(), session_plan(0.8, reencode=False))

    def kl() -> float:
        with torch.no_grad():
            scores = [reader.scores(lesson.teacher) for lesson in lessons]
            return float(divergences(reader, lessons, scores).sum())

    with torch.no_grad():
        for layer in run.adapter.scorer.down:
            layer.bias[0] += 50.0  # the first head of a layer would take everything
    before = kl()
    run.run()
    assert kl() < before
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["round"] for record in log if "round" in record] == [1, 2]
    once = {n: p.clone() for n, p in run.adapter.named_parameters() if n.startswith("scorer")}
    again = trainer(tmp_path, max_steps=4, importance_steps=2, calibration_rounds=2, save_every=1)
    assert all(torch.equal(p, dict(again.adapter.named_parameters())[n]) for n, p in once.items())
