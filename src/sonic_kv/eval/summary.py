"""From records to figures: recovery, KL, agreement and recall with bootstrap intervals, and paired differences."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sonic_kv.eval.matching import similarity
from sonic_kv.eval.results import Record

DRAWS = 2000
DISTANCES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 1 << 30))
SHARE = 0.5  # of full context's gain: another dialogue's history must stay below it

Figure = dict[str, float]  # "value", "low", "high"
Cell = tuple[str, float | None]  # method, ratio
Which = Callable[[dict[str, Any]], bool]  # of a record's turns or questions


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


def figure(values: Tensor) -> Figure | None:
    """The observed value and its 95 % interval; None: not defined."""
    if not bool(values[0].isfinite()):
        return None
    drawn = values[1:][values[1:].isfinite()]
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": float(values[0]), "low": low, "high": high}


def after_closing(turns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns that came after a segment was closed: before that, nothing has been dropped."""
    return [turn for turn in turns if turn["closed"]]


def _sum(record: Record, name: str, which: Which = lambda turn: True) -> float:
    return float(sum(turn[name] for turn in after_closing(record["turns"]) if which(turn)))


def _with(name: str, value: Any) -> Which:
    return lambda part: bool(part[name] == value)


def _between(low: int, high: int) -> Which:
    return lambda question: question["distance"] is not None and low <= question["distance"] <= high


class Suite:
    """The records of one benchmark, over the cases that every reference has."""

    def __init__(self, name: str, records: Sequence[Record], seed: int) -> None:
        self.name = name
        self.failed: dict[Cell, list[str]] = defaultdict(list)
        self.by_cell: dict[Cell, dict[str, Record]] = defaultdict(dict)
        for record in records:
            cell = record["method"], record["ratio"]
            if record["status"] == "ok":
                self.by_cell[cell][record["case"]] = record
            else:
                self.failed[cell].append(record["error"])
        full, none = self.by_cell.get(("full", None), {}), self.by_cell.get(("none", None), {})
        self.cases = [case for case in full if case in none and after_closing(full[case]["turns"])]
        self.full, self.none, self.seed = full, none, seed
        self._draws: dict[tuple[str, ...], Draws] = {}

    def draws(self, cases: Sequence[str]) -> Draws:
        """The same draws whenever the cases are the same: differences are paired."""
        key = tuple(cases)
        if key not in self._draws:
            self._draws[key] = Draws(len(cases), self.seed)
        return self._draws[key]

    def common(self, *cells: Cell) -> list[str]:
        """Cases that all of the cells have."""
        return [case for case in self.cases if all(case in self.by_cell[cell] for cell in cells)]

    def recovery(
        self,
        cell: Cell,
        cases: Sequence[str],
        which: Which = lambda turn: True,
    ) -> Tensor:
        """(L_none − L_method) / (L_none − L_full), per draw."""
        draws = self.draws(cases)
        loss, none, full = (
            draws.total([_sum(found[case], "nll", which) for case in cases])
            for found in (self.by_cell[cell], self.none, self.full)
        )
        return (none - loss) / (none - full)

    def recall(
        self,
        cell: Cell,
        cases: Sequence[str],
        which: Which = lambda question: True,
    ) -> Tensor:
        """Share of the questions whose answer's tokens are all the most probable ones, per draw."""
        draws, found = self.draws(cases), self.by_cell[cell]
        asked = [[q["right"] for q in found[case]["questions"] if which(q)] for case in cases]
        return draws.total([sum(a) for a in asked]) / draws.total([len(a) for a in asked])

    def per_token(self, cell: Cell, cases: Sequence[str], name: str) -> Tensor:
        draws, found = self.draws(cases), self.by_cell[cell]
        amount, tokens = (draws.total([_sum(found[case], n) for case in cases]) for n in (name, "tokens"))
        return amount / tokens

    def kl_recovery(self, cell: Cell, cases: Sequence[str]) -> Tensor:
        """1 − KL_method / KL_none, per draw: how much of full context's prediction is kept, right or wrong."""
        draws = self.draws(cases)
        mine, none = (
            draws.total([_sum(found[case], "kl") for case in cases])
            for found in (self.by_cell[cell], self.none)
        )
        return 1.0 - mine / none

    def worth(self) -> Figure | None:
        """What history is worth: loss per token without it minus that with all of it."""
        if not self.cases:
            return None
        none, full = (self.per_token((name, None), self.cases, "nll") for name in ("none", "full"))
        return figure(none - full)

    def row(self, cell: Cell) -> dict[str, Any]:
        """Everything known about one method at one ratio."""
        cases, found = self.common(cell), self.by_cell[cell]
        row: dict[str, Any] = {
            "method": cell[0],
            "ratio": cell[1],
            "cases": len(cases),
            "failed": len(self.failed[cell]),
        }
        if not cases:
            return row
        records = [found[case] for case in cases]
        row |= {
            "recovery": figure(self.recovery(cell, cases)),
            "nll": figure(self.per_token(cell, cases, "nll")),
            "kl": figure(self.per_token(cell, cases, "kl")),
            "kl_recovery": figure(self.kl_recovery(cell, cases)),
            "agreement": figure(self.per_token(cell, cases, "agree")),
            "recall": figure(self.recall(cell, cases)),
            **self._written(cell, cases),
            "questions": sum(len(record["questions"]) for record in records),
            "entries": _mean(record["memory"][-1] for record in records if record["memory"]),
            "history": _mean(record["history"] for record in records if record["memory"]),
            "seconds": _mean(record["seconds"] for record in records),
        }
        layers = [record["layers"] for record in records if "layers" in record]
        if layers:
            row["layers"] = [_mean(column) for column in zip(*layers, strict=True)]
        groups = sorted({record["group"] for record in records})
        if len(groups) > 1:
            row["groups"] = {}
            for group in groups:
                inside = [case for case in cases if found[case]["group"] == group]
                row["groups"][group] = {
                    "cases": len(inside),
                    "recovery": figure(self.recovery(cell, inside)),
                    "kl_recovery": figure(self.kl_recovery(cell, inside)),
                    "agreement": figure(self.per_token(cell, inside, "agree")),
                }
        turns = sorted({t["turn"] for record in records for t in after_closing(record["turns"])})
        row["turns"] = {str(turn): figure(self.recovery(cell, cases, _with("turn", turn))) for turn in turns}
        questions = [q for record in records for q in record["questions"]]
        kinds = sorted({q["kind"] for q in questions})
        row["kinds"] = {
            kind: {
                "questions": sum(q["kind"] == kind for q in questions),
                "recall": figure(self.recall(cell, cases, _with("kind", kind))),
            }
            for kind in kinds
        }
        row["distances"] = {}
        for low, high in DISTANCES:
            near = _between(low, high)
            count = sum(map(near, questions))
            if count:
                name = str(low) if low == high else f"{low}–{high}" if high < 1 << 30 else f"{low} and more"
                recall = figure(self.recall(cell, cases, near))
                row["distances"][name] = {"questions": count, "recall": recall}
        return row

    def _written(self, cell: Cell, cases: Sequence[str]) -> dict[str, Any]:
        """What is known of the replies that the model wrote: exact matches, likeness to full context's, scores."""
        found: dict[str, Any] = {}
        records = self.by_cell[cell]
        if any("exact" in q for case in cases for q in records[case]["questions"]):
            draws = self.draws(cases)
            exact = [[q["exact"] for q in records[case]["questions"] if "exact" in q] for case in cases]
            right, asked = draws.total([sum(e) for e in exact]), draws.total([len(e) for e in exact])
            found["exact"] = figure(right / asked)
        wrote = [case for case in cases if records[case].get("replies") and self.full[case].get("replies")]
        if wrote:
            found["similarity"] = self._average(
                wrote, [self._likeness(records[case], case) for case in wrote]
            )
        verdicts = [(case, records[case]["judge"]) for case in cases if "judge" in records[case]]
        scored = [(case, v["scores"]) for case, v in verdicts if v["scores"] is not None]
        if verdicts:
            found["unreadable"] = sum(v["unreadable"] for _, v in verdicts)
        if scored:
            judged = [case for case, _ in scored]
            found["judge"] = {
                name: self._average(judged, [scores[name] for _, scores in scored]) for name in scored[0][1]
            }
            found["judged"] = len(judged)
        return found

    def _likeness(self, record: Record, case: str) -> float:
        theirs = self.full[case]["replies"]
        return _mean(similarity(text, theirs.get(message, "")) for message, text in record["replies"].items())

    def _average(self, cases: Sequence[str], values: Sequence[float]) -> Figure | None:
        draws = self.draws(cases)
        return figure(draws.total(values) / draws.total([1.0] * len(cases)))

    def difference(self, one: Cell, other: Cell) -> dict[str, Any] | None:
        """`one` minus `other` on the cases of both."""
        cases = self.common(one, other)
        if not cases:
            return None
        return {
            "cases": len(cases),
            "recovery": figure(self.recovery(one, cases) - self.recovery(other, cases)),
            "recall": figure(self.recall(one, cases) - self.recall(other, cases)),
            "kl_recovery": figure(self.kl_recovery(one, cases) - self.kl_recovery(other, cases)),
        }

    def controls(self) -> list[dict[str, Any]]:
        """What must hold for the benchmark's figures to mean anything: a text, and whether it does."""
        worth, checks = self.worth(), []
        if worth is None:
            return [{"holds": False, "text": "no dialogue is long enough for a segment to be closed"}]
        depends = worth["low"] > 0.0
        checks.append(
            {
                "holds": depends,
                "text": f"history is worth {worth['value']:.4f} nats a reply token "
                f"({worth['low']:.4f} to {worth['high']:.4f})"
                + (
                    ""
                    if depends
                    else ": this benchmark does not depend on history, nothing can be concluded from it"
                ),
            }
        )
        kl = self.per_token(("full", None), self.cases, "kl")
        checks.append(
            {
                "holds": abs(float(kl[0])) < 1e-4,
                "text": f"full context, read turn by turn, is the plain model: KL {float(kl[0]):.1e} a token",
            }
        )
        other = "other-history", None
        cases = self.common(other) if depends and other in self.by_cell else []
        if cases:
            found = figure(self.recovery(other, cases))
            if found is not None:
                checks.append(
                    {
                        "holds": found["high"] < SHARE,
                        "text": f"another dialogue's history recovers {found['value']:.2f} "
                        f"({found['low']:.2f} to {found['high']:.2f})"
                        + (
                            ""
                            if found["high"] < SHARE
                            else ": more than half of the gain is not in what was said"
                        ),
                    }
                )
        return checks

    def summary(self) -> dict[str, Any]:
        """Everything, as `summary.json` has it."""
        cells = [*self.by_cell, *(cell for cell in self.failed if cell not in self.by_cell)]
        ours = {ratio: ("sonic", ratio) for method, ratio in cells if method == "sonic"}
        differences = []
        for method, ratio in self.by_cell:
            mine = ours.get(ratio)
            if mine is not None and method != "sonic":
                found = self.difference(mine, (method, ratio))
                if found is not None:
                    differences.append({"method": method, "ratio": ratio, **found})
        errors: dict[str, int] = defaultdict(int)
        for cell, reasons in self.failed.items():
            for reason in reasons:
                errors[f"{cell[0]}: {reason}"] += 1
        return {
            "cases": len(self.cases),
            "worth": self.worth(),
            "controls": self.controls(),
            "methods": [self.row(cell) for cell in cells],
            "sonic minus": differences,
            "errors": dict(errors),
        }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def summarise(records: Iterable[Record], seed: int) -> dict[str, Any]:
    """`Suite.summary` of every benchmark, by name."""
    by_name: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_name[record["benchmark"]].append(record)
    return {name: Suite(name, found, seed).summary() for name, found in by_name.items()}
