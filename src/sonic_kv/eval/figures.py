"""From records to figures: recovery, KL, recall and accuracy with bootstrap intervals, and paired differences."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sonic_kv.eval.matching import similarity
from sonic_kv.eval.results import Record

DRAWS = 2000
DISTANCES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 1 << 30))
OTHERS_SHARE = 0.5  # of full context's gain, or right answers: no or another history must stay below it
CHECKABLE = 0.3  # full context's share of right answers, below which they tell no methods apart
SUBJECTS = ("sonic", "selection", "reread")  # what others are compared with: the first that has been run
UNPAIRED = ("full", "none", "other-history")

Figure = dict[str, float]  # "value", "low", "high"
Cell = tuple[str, float | None]  # method, ratio
Parts = Callable[[Record], Iterable[dict[str, Any]]]  # turns or questions of a record


class Draws:
    """Bootstrap over cases: how often each of `count` cases is drawn, the observed sample first. (1 + DRAWS, count)"""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(count, (DRAWS, count), generator=generator)
        times = torch.zeros(DRAWS, count, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        self.times = torch.cat((torch.ones(1, count, dtype=torch.float64), times))

    def total(self, values: Sequence[float]) -> Tensor:
        """Sums over the cases, for each draw. (1 + DRAWS,)"""
        return self.times @ torch.tensor(values, dtype=torch.float64)


def figure(values: Tensor | None) -> Figure | None:
    """The observed value and its 95 % interval; None: not defined."""
    if values is None or not bool(values[0].isfinite()):
        return None
    drawn = values[1:][values[1:].isfinite()]
    drawn = values[:1] if not len(drawn) else drawn
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": float(values[0]), "low": low, "high": high}


def later_turns(record: Record) -> list[dict[str, Any]]:
    """The turns that came after a segment was closed: before that, nothing has been dropped."""
    return [turn for turn in record["turns"] if turn["closed"]]


def _questions(which: Callable[[dict[str, Any]], bool] = lambda question: True) -> Parts:
    return lambda record: (q for q in record["questions"] if which(q))


def _written(record: Record) -> Iterable[dict[str, Any]]:
    """The questions whose written answer was checked."""
    return (q for q in record["questions"] if "exact" in q)


class Figures:
    """The records of one suite, over the cases that both references have."""

    def __init__(self, records: Iterable[Record], seed: int) -> None:
        self.failed: dict[Cell, list[str]] = defaultdict(list)
        self.by_cell: dict[Cell, dict[str, Record]] = defaultdict(dict)
        for record in records:
            cell = record["method"], record["ratio"]
            if record["status"] == "ok":
                self.by_cell[cell][record["case"]] = record
            else:
                self.failed[cell].append(record["error"])
        self.full, self.none = self.by_cell.get(("full", None), {}), self.by_cell.get(("none", None), {})
        self.cases = [case for case in self.full if case in self.none and later_turns(self.full[case])]
        self.seed = seed
        self._draws: dict[tuple[str, ...], Draws] = {}

    def common(self, *cells: Cell) -> list[str]:
        """Cases that all of the cells have."""
        return [case for case in self.cases if all(case in self.by_cell.get(cell, {}) for cell in cells)]

    def total(
        self, found: Mapping[str, Record], cases: Sequence[str], name: str, parts: Parts = later_turns
    ) -> Tensor:
        """The sum of `name` over the records' parts (an empty name counts them), per draw.

        The same cases have the same draws, so that differences are paired.
        """
        if (key := tuple(cases)) not in self._draws:
            self._draws[key] = Draws(len(cases), self.seed)
        values = [sum(float(part[name]) if name else 1.0 for part in parts(found[case])) for case in cases]
        return self._draws[key].total(values)

    def average(self, cases: Sequence[str], values: Sequence[float]) -> Tensor:
        """Mean over the cases, per draw."""
        pairs = {case: {"v": [{"v": value}]} for case, value in zip(cases, values, strict=True)}
        return self.total(pairs, cases, "v", lambda record: record["v"]) / self.total(
            pairs, cases, "", lambda record: record["v"]
        )

    def recovery(self, cell: Cell, cases: Sequence[str]) -> Tensor:
        """(L_none − L_method) / (L_none − L_full), per draw."""
        loss, none, full = (
            self.total(found, cases, "nll") for found in (self.by_cell[cell], self.none, self.full)
        )
        return (none - loss) / (none - full)

    def kl_recovery(self, cell: Cell, cases: Sequence[str]) -> Tensor:
        """1 − KL_method / KL_none, per draw: how much of full context's prediction is kept, right or wrong."""
        return 1.0 - self.total(self.by_cell[cell], cases, "kl") / self.total(self.none, cases, "kl")

    def per_token(self, cell: Cell, cases: Sequence[str], name: str) -> Tensor:
        found = self.by_cell[cell]
        return self.total(found, cases, name) / self.total(found, cases, "tokens")

    def share(self, cell: Cell, cases: Sequence[str], name: str, parts: Parts) -> Tensor | None:
        """The share of the parts that are `name`, per draw; None: there are none."""
        found = self.by_cell[cell]
        if not any(True for case in cases for _ in parts(found[case])):
            return None
        return self.total(found, cases, name, parts) / self.total(found, cases, "", parts)

    def recall(self, cell: Cell, cases: Sequence[str], parts: Parts | None = None) -> Tensor | None:
        """Share of the questions whose answer's tokens are all the most probable ones, per draw."""
        return self.share(cell, cases, "right", parts or _questions())

    def accuracy(self, cell: Cell, cases: Sequence[str]) -> Tensor | None:
        """Share of the written answers that are right, per draw."""
        return self.share(cell, cases, "exact", _written)

    @cached_property
    def unchecked(self) -> str:
        """Why written answers tell no methods apart; empty: they do."""
        if not self._often(self.accuracy):
            return f": below {CHECKABLE}"
        full, none = (self.accuracy((name, None), self.cases) for name in ("full", "none"))
        assert full is not None
        if none is not None and float(none[0]) > OTHERS_SHARE * float(full[0]):
            return f", and {float(none[0]):.2f} without any history"
        return ""

    @property
    def recallable(self) -> bool:
        """Whether full context finds answers often enough for recall to tell methods apart."""
        return self._often(self.recall)

    def _often(self, measure: Callable[[Cell, Sequence[str]], Tensor | None]) -> bool:
        right = measure(("full", None), self.cases) if self.cases else None
        return right is not None and float(right[0]) >= CHECKABLE

    def worth(self) -> Figure | None:
        """What history is worth: loss per token without it minus that with all of it."""
        if not self.cases:
            return None
        none, full = (self.per_token((name, None), self.cases, "nll") for name in ("none", "full"))
        return figure(none - full)

    # --- rows ---------------------------------------------------------------------------------

    def row(self, cell: Cell) -> dict[str, Any]:
        """Everything known about one method at one ratio."""
        cases, found = self.common(cell), self.by_cell.get(cell, {})
        row: dict[str, Any] = {
            "method": cell[0],
            "ratio": cell[1],
            "cases": len(cases),
            "failed": len(self.failed.get(cell, ())),
        }
        if not cases:
            return row
        records = [found[case] for case in cases]
        closed = [record for record in records if record["memory"]]
        row |= {
            "recovery": figure(self.recovery(cell, cases)),
            "nll": figure(self.per_token(cell, cases, "nll")),
            "kl": figure(self.per_token(cell, cases, "kl")),
            "kl_recovery": figure(self.kl_recovery(cell, cases)),
            "agreement": figure(self.per_token(cell, cases, "agree")),
            "recall": figure(self.recall(cell, cases)) if self.recallable else None,
            **self._answers(cell, cases),
            **self._judged(cell, cases),
            "questions": sum(len(record["questions"]) for record in records),
            "entries": _mean(record["memory"][-1] for record in closed),
            "history": _mean(record["history"] for record in closed),
            "seconds": _mean(record["seconds"] for record in records),
            "parts": self._parts(cell, cases),
        }
        return row

    def _answers(self, cell: Cell, cases: Sequence[str]) -> dict[str, Any]:
        """Accuracy of the written answers, and as a share of full context's."""
        right = self.accuracy(cell, cases)
        if right is None:
            return {}
        found: dict[str, Any] = {"accuracy": figure(right)}
        full = self.accuracy(("full", None), cases)
        if not self.unchecked and full is not None:
            found["accuracy_share"] = figure(right / full)
        return found

    def _judged(self, cell: Cell, cases: Sequence[str]) -> dict[str, Any]:
        """Likeness of the written replies to full context's, and a judge's scores."""
        found: dict[str, Any] = {}
        records = self.by_cell[cell]
        wrote = [case for case in cases if records[case].get("replies") and self.full[case].get("replies")]
        if wrote:
            likeness = [
                _mean(
                    similarity(text, self.full[case]["replies"].get(message, ""))
                    for message, text in records[case]["replies"].items()
                )
                for case in wrote
            ]
            found["similarity"] = figure(self.average(wrote, likeness))
        verdicts = [(case, records[case]["judge"]) for case in cases if "judge" in records[case]]
        if verdicts:
            found["unreadable"] = sum(v["unreadable"] for _, v in verdicts)
        scored = [(case, v["scores"]) for case, v in verdicts if v["scores"] is not None]
        if scored:
            judged = [case for case, _ in scored]
            found["judge"] = {
                name: figure(self.average(judged, [scores[name] for _, scores in scored]))
                for name in scored[0][1]
            }
        return found

    def _parts(self, cell: Cell, cases: Sequence[str]) -> dict[str, Any]:
        """Recall by kind of question and by distance, KL recovery by group: each with how many there are."""
        found = self.by_cell[cell]
        asked = [q for case in cases for q in found[case]["questions"]]
        parts: dict[str, Any] = {"kind": {}, "distance": {}, "group": {}}
        asked = asked if self.recallable else []
        for kind in sorted({q["kind"] for q in asked}):
            which = _questions(lambda q, kind=kind: q["kind"] == kind)  # type: ignore[misc]
            parts["kind"][kind] = self._part(cell, cases, which)
        for low, high in DISTANCES:
            which = _questions(lambda q, low=low, high=high: low <= (q["distance"] or 0) <= high)  # type: ignore[misc]
            name = str(low) if low == high else f"{low}–{high}" if high < 1 << 30 else f"{low} and more"
            parts["distance"][name] = self._part(cell, cases, which)
        for group in sorted({found[case]["group"] for case in cases}):
            inside = [case for case in cases if found[case]["group"] == group]
            parts["group"][group] = {
                "count": len(inside),
                "kl_recovery": figure(self.kl_recovery(cell, inside)),
            }
        return {
            part: {name: value for name, value in by.items() if value["count"]}
            for part, by in parts.items()
            if sum(value["count"] > 0 for value in by.values()) > 1
        }

    def _part(self, cell: Cell, cases: Sequence[str], which: Parts) -> dict[str, Any]:
        count = sum(1 for case in cases for _ in which(self.by_cell[cell][case]))
        return {"count": count, "recall": figure(self.recall(cell, cases, which) if count else None)}

    def difference(self, one: Cell, other: Cell) -> dict[str, Any] | None:
        """`one` minus `other` on the cases of both, and the share of `other`'s KL that `one` leaves."""
        cases = self.common(one, other)
        if not cases:
            return None
        mine, theirs = (self.total(self.by_cell[cell], cases, "kl") for cell in (one, other))

        def less(measure: Callable[[Cell, Sequence[str]], Tensor | None]) -> Figure | None:
            a, b = measure(one, cases), measure(other, cases)
            return None if a is None or b is None else figure(a - b)

        return {
            "method": other[0],
            "ratio": other[1],
            "cases": len(cases),
            "recovery": less(self.recovery),
            "kl_recovery": less(self.kl_recovery),
            "kl_left": figure(mine / theirs),
            "recall": less(self.recall) if self.recallable else None,
            "accuracy": less(self.accuracy) if not self.unchecked else None,
        }

    def controls(self) -> list[dict[str, Any]]:
        """What must hold for the suite's figures to mean anything: a sentence, and whether it holds."""
        worth = self.worth()
        if worth is None:
            return [{"holds": False, "text": "no dialogue is long enough for a segment to be closed"}]
        checks = []

        def check(holds: bool, text: str, so: str = "", otherwise: str = "") -> None:
            checks.append({"holds": holds, "text": text + (so if holds else otherwise)})

        depends = worth["low"] > 0.0
        check(
            depends,
            f"history is worth {worth['value']:.4f} nats a reply token ({worth['low']:.4f} to "
            f"{worth['high']:.4f})",
            otherwise=": this suite does not depend on history, and nothing can be concluded from it",
        )
        kl = float(self.per_token(("full", None), self.cases, "kl")[0])
        most = max(1e-4, 0.01 * worth["value"])  # in half precision sums in another order differ by so much
        check(abs(kl) < most, f"full context, read turn by turn, is the plain model: KL {kl:.1e} a token")
        other = "other-history", None
        cases = self.common(other) if depends else []
        found = figure(self.recovery(other, cases)) if cases else None
        if found is not None:
            check(
                found["high"] < OTHERS_SHARE,
                f"another dialogue's history recovers {found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})",
                ": this suite depends on what was said",
                ", perhaps more than half of the gain: much of this suite does not depend on what was said",
            )
        if len(self.cases) == 1:
            check(
                True,
                "one dialogue alone has no intervals, and no other dialogue's history to compare it with",
            )
        right = self.recall(("full", None), self.cases)
        if right is not None and not self.recallable:
            check(
                False,
                f"full context itself finds {float(right[0]):.2f} of the known answers: recall says nothing here; "
                "read KL",
            )
        right = self.accuracy(("full", None), self.cases)
        if right is not None:
            check(
                not self.unchecked,
                f"full context answers {float(right[0]):.2f} of the questions right",
                "",
                f"{self.unchecked}, so written answers say nothing here; read KL",
            )
        return checks

    def summary(self) -> dict[str, Any]:
        """Everything, as `summary.json` has it."""
        cells = [*self.by_cell, *(cell for cell in self.failed if cell not in self.by_cell)]
        names = {method for method, _ in self.by_cell}
        subject = next((name for name in SUBJECTS if name in names), None)
        rivals = [cell for cell in self.by_cell if cell[0] not in (subject, *UNPAIRED)]
        paired = [self.difference((subject, cell[1]), cell) for cell in rivals if subject is not None]
        errors: dict[str, int] = defaultdict(int)
        for cell, reasons in self.failed.items():
            for reason in reasons:
                errors[f"{cell[0]}: {reason}"] += 1
        return {
            "cases": len(self.cases),
            "worth": self.worth(),
            "checkable": not self.unchecked,
            "controls": self.controls(),
            "methods": [self.row(cell) for cell in cells],
            "subject": subject,
            "paired": [found for found in paired if found is not None],
            "errors": dict(errors),
        }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def summarise(records: Iterable[Record], seed: int) -> dict[str, Any]:
    """`Figures.summary` of every suite, by name."""
    by_name: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_name[record["suite"]].append(record)
    return {name: Figures(found, seed).summary() for name, found in by_name.items()}
