"""A run's report: one text in Markdown whose tables are aligned, for a file and for the terminal alike."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sonic_kv.eval.damage import points, summarise_damage
from sonic_kv.eval.figures import Figure, summarise
from sonic_kv.eval.judge import Verdicts
from sonic_kv.eval.plots import plot, plot_damage
from sonic_kv.eval.results import Record, Results
from sonic_kv.text import percent_text, table

Summary = dict[str, Any]
DAMAGE = "damage"
Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str | None]]  # title, and a row's cell; None: it has none

TERMS = """\
In brackets: the 95 % interval, bootstrap over dialogues. Everything is measured on the replies' tokens after the
first closed segment.

- KL recovery: the share of the KL divergence between full context and no history that a method avoids.
- Recovery: the same in loss on the gold replies; above 1 it predicts them better than full context does.
- Agreement: the most probable token is full context's.
- Recall: all tokens of a known answer are the most probable ones, after the gold text before them.
- Accuracy: the answer that the model writes itself is right; of full: as a share of full context's.
- Entries: kept of closed segments at the end, on average over layers, KV heads and dialogues.
- Seconds: a dialogue's share of its batch, in this loop, not what a tuned implementation would take."""


def write(results: Results) -> Summary:
    """Write `summary.json` and `report.md` of a run, and plots if matplotlib is there; returns the summary.

    Raises:
        FileError: the folder is no run's, or its records are damaged.
    """
    config = results.config()
    suites = summarise(with_verdicts(results), config["options"]["seed"])
    found = points(results)
    damage = {"rows": summarise_damage(found, config["options"]["seed"]), "points": found}
    summary = {"config": config, "suites": suites, "damage": damage}
    results.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    drawn = {}
    for name, svg in [*((name, plot(suite)) for name, suite in suites.items()), (DAMAGE, plot_damage(found))]:
        if svg is not None:
            drawn[name] = results.write(f"{'' if name == DAMAGE else 'quality-'}{name}.svg", svg).name
    results.write("report.md", as_text(summary, drawn))
    return summary


def with_verdicts(results: Results) -> Iterator[Record]:
    """The records, with what a judge said about them."""
    verdicts = Verdicts(results.folder)
    for record in results:
        verdict = verdicts.of(record)
        yield record if verdict is None else {**record, "judge": verdict}


def as_text(summary: Summary, drawn: Mapping[str, str] | None = None, *, brief: bool = False) -> str:
    """The report.

    Args:
        drawn: file names of the suites' plots.
        brief: references, main tables and failures only.
    """
    parts = [] if brief else list(_head(summary))
    parts += _overview(summary)
    for name, found in summary["suites"].items():
        parts.append(f"## {name}\n\n{_about(summary, name)}")
        parts.append(
            "\n".join(f"- {'' if c['holds'] else 'CAREFUL: '}{c['text']}" for c in found["controls"])
        )
        parts.append(_table(_columns(found["methods"]), ordered(found["methods"])))
        if name in (drawn or {}):
            parts.append(f"![KL recovery by share of entries kept]({(drawn or {})[name]})")
        if not brief:
            parts += _details(found)
        if found["errors"]:
            parts.append(
                "\n".join(f"- failed {count} times: {why}" for why, count in found["errors"].items())
            )
    parts += _damage(summary.get(DAMAGE, {"rows": []})["rows"], (drawn or {}).get(DAMAGE))
    return "\n\n".join(part for part in parts if part) + "\n"


def _damage(rows: Sequence[Row], picture: str | None) -> Iterator[str]:
    """What adapters predict that dropped entries cost, against what they do."""
    if not rows:
        return
    yield "## Predicted damage\n\nIn nats a token of later replies, mean over dialogues of all suites."
    columns: list[Column] = [*_FIRST, ("dialogues", lambda row: str(row["count"]))]
    columns += [(name, _nats(name)) for name in ("predicted", "measured")]
    columns += [("kept", lambda row: percent_text(row["kept"])), ("rank correlation", _figure("correlation"))]
    yield _table(columns, rows)
    if picture is not None:
        yield f"![Predicted against measured KL divergence]({picture})"


def _nats(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:.4f}"


def compare(runs: Mapping[str, Summary]) -> str:
    """KL recovery, recall and accuracy of several runs side by side."""
    parts = []
    for name in dict.fromkeys(name for summary in runs.values() for name in summary["suites"]):
        found = {run: summary["suites"].get(name, {"methods": []}) for run, summary in runs.items()}
        columns = [*_FIRST]
        for run in runs:
            for figure in ("kl_recovery", "recall", "accuracy"):
                columns.append((f"{run}: {_TITLES[figure]}", _nested(run, figure)))
        parts.append(f"## {name}\n\n{_table(columns, ordered(_side_by_side(found)))}")
    return "\n\n".join(parts) + "\n"


def _side_by_side(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and ratio, with the rows that several results have of it, by their names."""
    rows: dict[tuple[str, float | None], dict[str, Any]] = {}
    for name, result in found.items():
        for row in result["methods"]:
            cell = row["method"], row["ratio"]
            rows.setdefault(cell, {"method": cell[0], "ratio": cell[1]})[name] = row
    return list(rows.values())


def number(found: Figure | None, digits: int = 2) -> str | None:
    """A value and its interval."""
    if found is None:
        return None
    if found["low"] == found["high"]:  # a single dialogue, or the same in all
        return f"{found['value']:.{digits}f}"
    low, high = (f"{found[end]:.{digits}f}" for end in ("low", "high"))
    return f"{found['value']:.{digits}f} ({low}{' to ' if '-' in low + high else '–'}{high})"


def ordered(rows: Iterable[Row]) -> list[Row]:
    """References first, then by ratio, the best first."""

    def rank(row: Row) -> tuple[bool, float, float]:
        quality = row.get("kl_recovery") or {"value": -1e9}
        return row["ratio"] is not None, row["ratio"] or 0.0, -quality["value"]

    return sorted(rows, key=rank)


def _ratio(row: Row) -> str | None:
    return None if row["ratio"] is None else percent_text(row["ratio"])


def _figure(name: str, digits: int = 2) -> Callable[[Row], str | None]:
    return lambda row: number(row.get(name), digits)


def _nested(part: str, name: str, *path: str) -> Callable[[Row], str | None]:
    """The figure that stands inside other tables of a row, if it does."""

    def found(row: Row) -> str | None:
        inside: Any = row
        for step in (part, *path):
            inside = inside.get(step) or {}
        return number(inside.get(name))

    return found


_FIRST: tuple[Column, ...] = (("method", lambda row: row["method"]), ("removed", _ratio))
_TITLES = {
    "kl_recovery": "KL recovery",
    "recovery": "recovery",
    "agreement": "agreement",
    "recall": "recall",
    "accuracy": "accuracy",
    "accuracy_share": "of full",
    "similarity": "like full context",
}


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Columns of a suite's main table; those without any cell fall away."""
    criteria = dict.fromkeys(name for row in rows for name in row.get("judge", {}))
    return [
        *_FIRST,
        *((title, _figure(name)) for name, title in _TITLES.items()),
        *((f"judge: {name}", _nested("judge", name)) for name in criteria),
        ("unreadable verdicts", lambda row: str(row["unreadable"]) if "unreadable" in row else None),
        ("entries", lambda row: f"{row['entries']:.0f}" if "entries" in row else None),
        ("seconds", lambda row: f"{row['seconds']:.2f}" if "seconds" in row else None),
    ]


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table; columns without any cell fall away."""
    filled = [(title, [cell(row) for row in rows]) for title, cell in columns]
    filled = [(title, cells) for title, cells in filled if any(c is not None for c in cells)]
    if not rows or not filled:
        return ""
    body = list(zip(*([cell or "–" for cell in cells] for _, cells in filled), strict=True))
    return table([title for title, _ in filled], body)


def _head(summary: Summary) -> Iterator[str]:
    config = summary["config"]
    fixed, machine, options = config["fixed"], config["machine"], config["options"]
    yield "# Multi-turn evaluation"
    yield (
        f"Model {config['model']} (weights {fixed['model']['weights']}, adapter {fixed['adapter'] or 'none'}), "
        f"sonic-kv {fixed['version']}, {machine['device']}, torch {machine['torch']}. Seed {options['seed']}, at "
        f"most {fixed['max_tokens']} tokens a dialogue."
    )
    if config["lacking"]:
        yield "Not run here: " + "; ".join(f"{name} (needs {why})" for name, why in config["lacking"].items())
    if config.get("only_named"):
        yield f"Not run unless named (--methods): {', '.join(config['only_named'])}."
    yield TERMS


def _about(summary: Summary, name: str) -> str:
    config, found = summary["config"], summary["suites"][name]
    skipped = config["skipped"].get(name, 0)
    left_out = f"; {skipped} more are too long and left out" if skipped else ""
    counted = "1 dialogue" if found["cases"] == 1 else f"{found['cases']} dialogues"
    return f"{counted} ({config['suites'][name]['source']}){left_out}."


def _overview(summary: Summary) -> Iterator[str]:
    """All suites in one table, if there are several; the order is by mean KL recovery."""
    suites = summary["suites"]
    if len(suites) < 2:
        return
    rows = _side_by_side(suites)
    for row in rows:
        kept = [row[name]["kl_recovery"]["value"] for name in suites if row.get(name, {}).get("kl_recovery")]
        row["kl_recovery"] = {"value": sum(kept) / len(kept)} if kept else None
    columns: list[Column] = [*_FIRST]
    for figure in ("kl_recovery", "accuracy_share", "recall"):
        columns += [(f"{_TITLES[figure]}, {name}", _nested(name, figure)) for name in suites]
    yield "## All suites"
    yield _table(columns, ordered(rows))


def _details(found: dict[str, Any]) -> Iterator[str]:
    """Paired differences, and figures by part."""
    if found["paired"]:
        yield f"### {found['subject']} minus each rival, on the same dialogues"
        yield "KL left: its KL from full context as a share of the rival's; below 1 it stays closer."
        names = ("kl_recovery", "recovery", "recall", "accuracy")
        columns = [*_FIRST, *((_TITLES[name], _figure(name, 3)) for name in names)]
        rows = sorted(
            found["paired"],
            key=lambda d: (d["ratio"] or 0.0, (d["kl_recovery"] or {"value": 0.0})["value"]),
        )
        yield _table([*columns, ("KL left", _figure("kl_left"))], rows)
    for part, figure, title in (
        ("kind", "recall", "Recall by kind of question"),
        ("distance", "recall", "Recall by distance, in exchanges"),
        ("group", "kl_recovery", "KL recovery by group"),
    ):
        rows = [row for row in ordered(found["methods"]) if part in row.get("parts", {})]
        counts = {name: value["count"] for row in rows for name, value in row["parts"][part].items()}
        if counts:
            yield f"### {title}"
            columns = [
                (f"{name} ({count})", _nested("parts", figure, part, name)) for name, count in counts.items()
            ]
            yield _table([*_FIRST, *columns], rows)
