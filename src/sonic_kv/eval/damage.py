"""Predicted damage against measured divergence, dialogue by dialogue."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sonic_kv.eval.figures import DRAWS, Figure, figure, later_turns
from sonic_kv.eval.results import Record

FEWEST = 4  # dialogues of which a rank correlation is told


def points(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What was predicted and measured of each dialogue under each budget, mean over the tokens of later replies.

    Returns:
        rows of method, ratio, suite, case, predicted and measured (nats a token), and kept (share of the history)
    """
    found = []
    for record in records:
        turns = later_turns(record) if record["status"] == "ok" and record.get("damage") else []
        tokens = sum(turn["tokens"] for turn in turns)
        if tokens and None not in record["damage"]:
            foretold = sum(turn["tokens"] * record["damage"][turn["closed"] - 1] for turn in turns)
            found.append(
                {
                    **{name: record[name] for name in ("method", "ratio", "suite", "case")},
                    "predicted": foretold / tokens,
                    "measured": sum(turn["kl"] for turn in turns) / tokens,
                    "kept": record["memory"][-1] / record["history"],
                }
            )
    return found


def summarise_damage(found: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """A row for each method and budget, and one for all budgets of a method, if it has several."""
    cells: dict[tuple[str, float | None], list[dict[str, Any]]] = defaultdict(list)
    for point in found:
        cells[point["method"], point["ratio"]].append(point)
    rows = [_row(method, ratio, inside, seed) for (method, ratio), inside in cells.items()]
    if len(cells) > 1:
        rows.append(_row("all budgets", None, found, seed))
    return rows


def _row(method: str, ratio: float | None, found: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    def mean(name: str) -> float:
        return float(sum(point[name] for point in found) / len(found))

    return {
        "method": method,
        "ratio": ratio,
        "count": len(found),
        **{name: mean(name) for name in ("predicted", "measured", "kept")},
        "correlation": rank_correlation(
            [point["predicted"] for point in found], [point["measured"] for point in found], seed
        ),
    }


def rank_correlation(one: Sequence[float], other: Sequence[float], seed: int) -> Figure | None:
    """Spearman's, and its bootstrap interval; None: too few to tell."""
    if len(one) < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.cat(
        (torch.arange(len(one))[None], torch.randint(len(one), (DRAWS, len(one)), generator=generator))
    )
    a, b = (_ranks(torch.tensor(values, dtype=torch.float64)[drawn]) for values in (one, other))
    a, b = (ranks - ranks.mean(-1, keepdim=True) for ranks in (a, b))
    return figure((a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt())


def _ranks(values: Tensor) -> Tensor:
    """Ranks within each row, equal values at their mean rank. (…, n) → (…, n)"""
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values.contiguous())
    return (below + torch.searchsorted(ordered, values.contiguous(), right=True)).double() / 2
