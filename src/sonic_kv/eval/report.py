"""A run's report: on the terminal and as `report.md`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sonic_kv.eval.results import Record, Results, key
from sonic_kv.eval.summary import Figure, summarise
from sonic_kv.human import percent_text, table

Summary = dict[str, Any]
COLUMNS = ("recovery", "kl", "agreement", "recall")


def write(results: Results) -> Summary:
    """Write `summary.json` and `report.md` of a run; returns the summary.

    Raises:
        FileError: the folder is no run's, or its records are damaged.
    """
    config = results.config()
    summary = {
        "config": config,
        "benchmarks": summarise(with_verdicts(results), config["options"]["seed"]),
    }
    results.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    results.write("report.md", as_markdown(summary))
    return summary


def with_verdicts(results: Results) -> Iterator[Record]:
    """The records, with what a judge said about them."""
    judged = results.judged()
    for record in results:
        verdict = judged.get(key(record))
        yield record if verdict is None else {**record, "judge": verdict}


def number(found: Figure | None, digits: int = 2) -> str:
    """A value and its interval."""
    if found is None:
        return "–"
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"


def ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else percent_text(ratio)


def ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """References first, then by ratio, the best first."""
    return sorted(
        rows,
        key=lambda r: (
            r["ratio"] is not None,
            r["ratio"] or 0.0,
            -((r.get("recovery") or {}).get("value", -9e9)),
        ),
    )


def _cells(row: dict[str, Any]) -> list[str]:
    digits = {"kl": 3}
    return [
        row["method"],
        ratio_text(row["ratio"]),
        *(number(row.get(name), digits.get(name, 2)) for name in COLUMNS),
        f"{row['entries']:.0f}" if "entries" in row else "–",
        f"{row['seconds']:.2f}" if "seconds" in row else "–",
    ]


HEAD = ("method", "removed", "recovery", "KL", "agreement", "recall", "entries", "seconds")


def as_text(summary: Summary) -> str:
    """The run's tables for a terminal."""
    parts = []
    for name, found in summary["benchmarks"].items():
        parts.append(f"{name}: {found['cases']} dialogues")
        parts += [f"  {'ok' if c['holds'] else 'NOT'}: {c['text']}" for c in found["controls"]]
        parts.append(table(HEAD, [_cells(row) for row in ordered(found["methods"])]))
        parts += [f"failed {count} times: {reason}" for reason, count in found["errors"].items()]
        parts.append("")
    return "\n".join(parts).rstrip()


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _written(found: dict[str, Any]) -> str | None:
    """What the model's own replies are worth; None: it wrote none."""
    rows = [row for row in ordered(found["methods"]) if "similarity" in row]
    if not rows:
        return None
    criteria = list(dict.fromkeys(name for row in rows for name in row.get("judge", {})))
    judged = ["unreadable verdicts"] if any("unreadable" in row for row in rows) else []
    head = (
        "method",
        "removed",
        "exact match",
        "like full context",
        *(f"judge: {c}" for c in criteria),
        *judged,
    )
    body = [
        [
            row["method"],
            ratio_text(row["ratio"]),
            number(row.get("exact")),
            number(row["similarity"]),
            *(number(row.get("judge", {}).get(name), 1) for name in criteria),
            *(str(row.get("unreadable", "–")) for _ in judged),
        ]
        for row in rows
    ]
    return markdown_table(head, body)


def _differences(found: dict[str, Any]) -> str:
    rows = [
        [
            d["method"],
            ratio_text(d["ratio"]),
            number(d["recovery"]),
            number(d["recall"]),
            number(d["kl"], 3),
            str(d["cases"]),
        ]
        for d in sorted(
            found["sonic minus"], key=lambda d: (d["ratio"], d["recovery"]["value"] if d["recovery"] else 0)
        )
    ]
    return markdown_table(("SONIC minus", "removed", "recovery", "recall", "KL", "dialogues"), rows)


def _by(found: dict[str, Any], part: str, figure: str) -> str | None:
    """Methods × the values of `part` (kinds, distances, groups); None if there is nothing to tell apart."""
    rows = [row for row in ordered(found["methods"]) if row.get(part)]
    names = list(dict.fromkeys(name for row in rows for name in row[part]))
    if not names:
        return None
    counts = {name: next(r[part][name] for r in rows if name in r[part]) for name in names}
    head = [f"{name} ({counts[name].get('questions', counts[name].get('cases'))})" for name in names]
    body = [
        [
            row["method"],
            ratio_text(row["ratio"]),
            *(number(row[part].get(name, {}).get(figure)) for name in names),
        ]
        for row in rows
    ]
    return markdown_table(("method", "removed", *head), body)


def _uneven(found: dict[str, Any]) -> Iterator[str]:
    for row in ordered(found["methods"]):
        if "layers" in row:
            layers = ", ".join(f"{n:.0f}" for n in row["layers"])
            yield f"- {row['method']} at {ratio_text(row['ratio'])}: {layers}"


def as_markdown(summary: Summary) -> str:
    """The report."""
    config = summary["config"]
    fixed, machine, options = config["fixed"], config["machine"], config["options"]
    parts = [
        "# Multi-turn evaluation",
        f"Model: {config.get('model') or 'the default model'} (weights {fixed['model']['weights']}, adapter "
        f"{fixed['adapter'] or 'none'}), sonic-kv {fixed['version']}, {machine['device']}, "
        f"{machine['threads']} thread(s), torch {machine['torch']}. Seed {options['seed']}, at most "
        f"{fixed['max_tokens']} tokens a dialogue.",
        "Brackets: 95 % interval, bootstrap over dialogues. *Recovery*: the share of what history is worth, in loss on "
        "the replies' tokens after the first closed segment, that a method keeps. *KL*: from full context, in nats a "
        "token. *Agreement*: the most probable token is full context's. *Recall*: all tokens of an answer are the most "
        "probable ones after the gold text before them. *Entries*: kept of closed segments at the end, per layer and "
        "KV head, mean over dialogues. *Seconds*: a dialogue's share of its batch.",
    ]
    if config.get("lacking"):
        parts.append(
            "Not run here: "
            + "; ".join(f"{name} (needs {why})" for name, why in config["lacking"].items())
            + "."
        )
    for name, found in summary["benchmarks"].items():
        source = config["benchmarks"][name]["source"]
        skipped = config.get("skipped", {}).get(name, 0)
        parts.append(f"## {name}")
        parts.append(
            f"{found['cases']} dialogues ({source})"
            + (f"; {skipped} too long and left out" if skipped else "")
            + "."
        )
        parts.append(
            "\n".join(f"- {'✓' if c['holds'] else '✗ **fails**:'} {c['text']}" for c in found["controls"])
        )
        parts.append(markdown_table(HEAD, [_cells(row) for row in ordered(found["methods"])]))
        if found["sonic minus"]:
            parts += ["Paired differences, on the same dialogues:", _differences(found)]
        written = _written(found)
        if written is not None:
            parts += [
                "Replies that the model wrote itself. *Like full context*: F1 of the words with its reply. *Judge*: "
                "1 to 10, the lowest of a dialogue's turns, mean over dialogues.",
                written,
            ]
        for part, figure, title in (
            ("kinds", "recall", "Recall by kind of question"),
            ("distances", "recall", "Recall by distance, in exchanges"),
            ("groups", "recovery", "Recovery by group"),
        ):
            made = _by(found, part, figure)
            if made is not None:
                parts += [f"### {title}", made]
        uneven = list(_uneven(found))
        if uneven:
            parts += ["Entries by layer, where layers keep different numbers:", "\n".join(uneven)]
        if found["errors"]:
            parts += [
                "Failures:",
                "\n".join(f"- {reason}: {count}" for reason, count in found["errors"].items()),
            ]
    return "\n\n".join(parts) + "\n"


def compare_text(runs: Mapping[str, Summary]) -> str:
    """Recovery and recall of several runs side by side."""
    parts = []
    names = list(dict.fromkeys(name for run in runs.values() for name in run["benchmarks"]))
    for name in names:
        found = {
            target: {(row["method"], row["ratio"]): row for row in run["benchmarks"][name]["methods"]}
            for target, run in runs.items()
            if name in run["benchmarks"]
        }
        cells = list(dict.fromkeys(cell for rows in found.values() for cell in rows))
        head = [
            "method",
            "removed",
            *(f"{target}: {what}" for target in found for what in ("recovery", "recall")),
        ]
        body = [
            [
                cell[0],
                ratio_text(cell[1]),
                *(
                    number(rows.get(cell, {}).get(what))
                    for rows in found.values()
                    for what in ("recovery", "recall")
                ),
            ]
            for cell in sorted(cells, key=lambda c: (c[1] is not None, c[1] or 0.0, c[0]))
        ]
        parts.append(f"{name}\n{table(head, body)}")
    return "\n\n".join(parts)
