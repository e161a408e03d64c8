"""The published form's recipe: its losses, each by itself, and a run of it."""

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import SIZES, read_log, trainer
from test_training import OTHER, PLAN, assert_same, gradients_of
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.model.adapter import Adapter
from sonic_kv.model.model import SonicModel
from sonic_kv.training import losses as main_losses
from sonic_kv.training.objectives import Run
from sonic_kv.training.options import PlanConfig

RECIPE = Path(__file__).parent.parent / "recipes" / "published"
sys.path.insert(0, str(RECIPE))  # its files import one another, as those of a script do
import losses  # noqa: E402
import train as recipe  # noqa: E402
from losses import LossConfig  # noqa: E402
from objective import PublishedObjective, published  # noqa: E402

sys.path.remove(str(RECIPE))

EVERY_LOSS = LossConfig(
    importance_queries=64,
    attention_weight=1.0,
    output_weight=1.0,
    ignored_weight=1.0,
    ignored_share=1.0,
    coverage_weight=1.0,
    reconstruction_weight=0.5,
    observed_layers=2,
)


def objective_of(
    loss: LossConfig = EVERY_LOSS, plan: PlanConfig = PLAN, **options: Any
) -> PublishedObjective:
    base = tiny_base(max_position_embeddings=4096)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    return PublishedObjective(model, model.adapter, plan, Run(**options), loss)


def gradients(objective: PublishedObjective, groups: list[list[int]]) -> Any:
    encoded = [objective.model.format.encode(messages) for messages in (DIALOGUE, OTHER)]
    return gradients_of(objective, encoded, groups)


def test_every_loss_is_found_and_reaches_the_lora() -> None:
    sums, found = gradients(objective_of(), [[0], [1]])
    names = {f.removesuffix("_weight") for f in vars(EVERY_LOSS) if f.endswith("_weight")}
    assert sums.keys() == names
    assert all(value > 0 for value in sums.values())
    assert any(n.startswith("lora.") for n in found)
    for name in names - {"importance", "distillation"}:
        only = {f"{other}_weight": 0.0 for other in names - {name}}
        _, alone = gradients(objective_of(replace(EVERY_LOSS, **only)), [[0]])
        assert any(bool(g.abs().sum() > 0) for n, g in alone.items() if n.startswith("lora.")), name


def test_losses_in_chunks_are_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients(objective_of(), [[0], [1]])
    monkeypatch.setattr(main_losses, "CHUNK", 7)
    assert_same(gradients(objective_of(), [[0], [1]]), whole)


def test_packed_dialogues_learn_what_single_ones_do() -> None:
    loss = replace(EVERY_LOSS, observed_layers=3)  # all: which layers are observed is drawn once a forward
    loss = replace(loss, reconstruction_weight=0.0, coverage_weight=0.0)  # they draw on, in another order
    assert_same(gradients(objective_of(loss), [[0], [1]]), gradients(objective_of(loss), [[0, 1]]))


def test_checkpointing_gives_equal_gradients() -> None:
    assert_same(
        gradients(objective_of(), [[0], [1]]), gradients(objective_of(checkpointing=True), [[0], [1]])
    )


def test_need_is_nothing_where_history_changes_nothing() -> None:
    objective = objective_of()
    (lesson,) = objective.read([objective.model.format.encode(DIALOGUE)], [random.Random(0)])
    assert lesson.need is not None
    assert float(lesson.need[: lesson.first].abs().max()) < 1e-5  # the first segment has no history
    assert float(lesson.need[lesson.first :].min()) > -1e-6
    assert float(lesson.need[lesson.first :].max()) > 1e-3


def test_what_is_kept_whole_is_the_base() -> None:
    plan = PlanConfig(ratio_min=0.0, ratio_max=0.0, raw_share=1.0, **SIZES)
    names = ("distillation", "attention", "output", "ignored")
    weights = {f"{name}_weight": 1.0 for name in names}
    objective = objective_of(LossConfig(**weights, reconstruction_weight=0.0, observed_layers=3), plan)
    (lesson,) = objective.read([objective.model.format.encode(DIALOGUE)], [random.Random(0)])
    for seed in range(5):
        with objective.compressed([replace(lesson, rng=random.Random(seed))]) as named:
            assert named.keys() == set(names)
            for name, value in named.items():
                assert float(value.detach()) == pytest.approx(0.0, abs=1e-5), name


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
    logits, targets = torch.zeros(2, 4), torch.tensor([0, 2])
    logits[0, 0] = 50.0
    assert float(losses.cross_entropy(logits, targets)) == pytest.approx(math.log(4) / 2)
    looked = torch.tensor([[[[0.2, 0.6], [0.2, 0.2]]]])  # two Nexus tokens, two tokens of the segment
    assert float(losses.coverage(looked, torch.tensor([[1 / 3, 2 / 3]]))) == pytest.approx(0.0, abs=1e-6)


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

    def target(norm: float, weights: torch.Tensor | None = None) -> Sequence[float]:
        first, second = losses.attention_targets(paid, queries, [2, 4], 1, norm, weights)
        assert first.shape == (1, 1)
        found: list[float] = second[0].tolist()
        return found

    assert target(math.inf) == [0.0, 0.5, 0.5]
    assert target(1.0) == pytest.approx([0.0, 0.6, 0.4])
    assert target(2.0) == pytest.approx([0.0, 5**0.5 / (5**0.5 + 2), 2 / (5**0.5 + 2)])
    assert target(math.inf, torch.tensor([9.0, 4.0, 1.0])) == pytest.approx([0.0, 2 / 3, 1 / 3])


def test_the_trainer_takes_it_and_the_scorer_learns_to_the_end(tmp_path: Path) -> None:
    path = trainer(tmp_path, adapter={"form": "learned"}, objective=published(EVERY_LOSS), max_steps=4).run()
    records = read_log(tmp_path)
    assert all("importance" in record and record["scorer_lr"] > 0 for record in records)
    assert [record["step"] for record in records if "reconstruction" in record] == [3, 4]
    adapter = Adapter.load(tiny_base(max_position_embeddings=4096), path)
    assert adapter.config.form == "learned"


def test_its_command_reads_its_file(tmp_path: Path) -> None:
    model = tiny_model(adapter=False, max_position_embeddings=4096)
    model.base.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    lines = (RECIPE / "train.toml").read_text().replace("max_steps = 1500", "max_steps = 2\nbf16 = false")
    short = {"data_share = 0.6": "data_share = 0.0", "importance_steps = 150": "importance_steps = 1"}
    for old, new in short.items():
        assert old in lines
        lines = lines.replace(old, new)
    (tmp_path / "short.toml").write_text(lines)
    parser = recipe.parser()
    given = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    path = recipe.main(parser.parse_args([*given, "--config", str(tmp_path / "short.toml")]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["objective"] == "published"
    assert path.is_file()
