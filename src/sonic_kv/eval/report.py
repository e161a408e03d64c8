"""A run's report: on the terminal, as `report.md`, and as `report.html` with plots."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol

from sonic_kv.eval.plots import plots
from sonic_kv.eval.results import Record, Results, key
from sonic_kv.eval.summary import Figure, summarise
from sonic_kv.text import percent_text, table

Summary = dict[str, Any]
HEAD = ("method", "removed", "recovery", "KL recovery", "agreement", "recall", "entries", "seconds")
FIGURES = ("recovery", "kl_recovery", "agreement", "recall")
TERMS = (
    "Brackets: 95 % interval, bootstrap over dialogues. All losses are those on the replies' tokens after the first "
    "closed segment. Recovery: the share of what history is worth, in loss, that a method keeps; above 1 it predicts "
    "the gold replies better than full context does. KL recovery: the share of the KL divergence between full context "
    "and no history that a method avoids: how much it stays the same model, right or wrong. Agreement: the most "
    "probable token is full context's. Recall: all tokens of an answer are the most probable ones after the gold text "
    "before them. Entries: kept of closed segments at the end, per layer and KV head, mean over dialogues. Seconds: a "
    "dialogue's share of its batch, this project's own loop and not what a tuned implementation would take."
)


class Block(Protocol):
    """A part of the report."""

    def markdown(self) -> str: ...

    def html(self) -> str: ...


@dataclass(frozen=True)
class Title:
    """A heading; level 1 is the page's."""

    text: str
    level: int = 2

    def markdown(self) -> str:
        return f"{'#' * self.level} {self.text}"

    def html(self) -> str:
        return f"<h{self.level}>{escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def markdown(self) -> str:
        return self.text

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]

    def markdown(self) -> str:
        return "\n".join(f"- {item}" for item in self.items)

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in self.items) + "</ul>"


@dataclass(frozen=True)
class Table:
    """A table; the first column names what the row is about."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        rows = "".join(
            f"<tr{' class=ours' if row[0] == 'sonic' else ''}>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self.rows
        )
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def write(results: Results) -> Summary:
    """Write `summary.json`, `report.md` and `report.html` of a run; returns the summary.

    Raises:
        FileError: the folder is no run's, or its records are damaged.
    """
    config = results.config()
    benchmarks = summarise(with_verdicts(results), config["options"]["seed"])
    summary = {"config": config, "benchmarks": benchmarks}
    results.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    results.write("report.md", as_markdown(summary))
    results.write("report.html", as_html(summary))
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
    low, high = (f"{found[end]:.{digits}f}" for end in ("low", "high"))
    return f"{found['value']:.{digits}f} ({low}{' to ' if '-' in low + high else '–'}{high})"


def ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else percent_text(ratio)


def ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """References first, then by ratio, the best first."""

    def rank(row: dict[str, Any]) -> tuple[bool, float, float]:
        quality = row.get("kl_recovery") or {"value": -1e9}
        return row["ratio"] is not None, row["ratio"] or 0.0, -quality["value"]

    return sorted(rows, key=rank)


def _main(found: dict[str, Any]) -> Table:
    rows = [
        [
            row["method"],
            ratio_text(row["ratio"]),
            *(number(row.get(name)) for name in FIGURES),
            f"{row['entries']:.0f}" if "entries" in row else "–",
            f"{row['seconds']:.2f}" if "seconds" in row else "–",
        ]
        for row in ordered(found["methods"])
    ]
    return Table(HEAD, rows)


def _overview(summary: Summary) -> Iterator[Block]:
    """All benchmarks in one table, if there are several."""
    benchmarks = summary["benchmarks"]
    if len(benchmarks) < 2:
        return
    cells: dict[tuple[str, float | None], dict[str, dict[str, Any]]] = {}
    for name, found in benchmarks.items():
        for row in found["methods"]:
            cells.setdefault((row["method"], row["ratio"]), {})[name] = row
    rows: list[dict[str, Any]] = []
    for (method, ratio), by_name in cells.items():
        kept = [row["kl_recovery"]["value"] for row in by_name.values() if row.get("kl_recovery")]
        mean = {"value": sum(kept) / len(kept)} if kept else None
        rows.append({"method": method, "ratio": ratio, "kl_recovery": mean, "by name": by_name})
    figures = [
        (figure, name)
        for figure in ("recall", "kl_recovery")
        for name in benchmarks
        if any(row["by name"].get(name, {}).get(figure) for row in rows)
    ]
    body = [
        [
            row["method"],
            ratio_text(row["ratio"]),
            *(number(row["by name"].get(name, {}).get(figure)) for figure, name in figures),
        ]
        for row in ordered(rows)
    ]
    titles = {"recall": "recall", "kl_recovery": "KL recovery"}
    yield Title("All benchmarks")
    yield Table(("method", "removed", *(f"{titles[figure]}, {name}" for figure, name in figures)), body)


def _differences(found: dict[str, Any]) -> Table:
    def rank(difference: dict[str, Any]) -> tuple[float, float]:
        return difference["ratio"], (difference["kl_recovery"] or {"value": 0.0})["value"]

    rows = [
        [d["method"], ratio_text(d["ratio"]), *(number(d[n]) for n in ("recovery", "kl_recovery", "recall"))]
        for d in sorted(found["sonic minus"], key=rank)
    ]
    return Table(("SONIC minus", "removed", "recovery", "KL recovery", "recall"), rows)


def _by(found: dict[str, Any], part: str, figure: str) -> Table | None:
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
    return Table(("method", "removed", *head), body)


def _written(found: dict[str, Any]) -> Table | None:
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
    return Table(head, body)


def _head(summary: Summary) -> Iterator[Block]:
    config = summary["config"]
    fixed, machine, options = config["fixed"], config["machine"], config["options"]
    yield Title("Multi-turn evaluation", 1)
    yield Text(
        f"Model {config['model']} (weights {fixed['model']['weights']}, adapter {fixed['adapter'] or 'none'}), "
        f"sonic-kv {fixed['version']}, {machine['device']}, torch {machine['torch']}. Seed {options['seed']}, at most "
        f"{fixed['max_tokens']} tokens a dialogue."
    )
    yield Text(TERMS)
    if config["lacking"]:
        lacking = "; ".join(f"{name} (needs {why})" for name, why in config["lacking"].items())
        yield Text(f"Not run here: {lacking}.")


def _benchmark(summary: Summary, name: str) -> Iterator[Block]:
    config, found = summary["config"], summary["benchmarks"][name]
    skipped = config["skipped"].get(name, 0)
    left_out = f"; {skipped} more are too long and left out" if skipped else ""
    yield Text(f"{found['cases']} dialogues ({config['benchmarks'][name]['source']}){left_out}.")
    yield Bullets([f"{'✓' if c['holds'] else '✗ fails:'} {c['text']}" for c in found["controls"]])
    yield _main(found)
    if found["sonic minus"]:
        yield Title("Paired differences, on the same dialogues", 3)
        yield _differences(found)
    written = _written(found)
    if written is not None:
        yield Title("Replies that the model wrote itself", 3)
        yield Text(
            "Like full context: F1 of the words with the reply it writes with full context. Judge: 1 to 10, the lowest "
            "of a dialogue's turns, mean over dialogues."
        )
        yield written
    for part, figure, title in (
        ("kinds", "recall", "Recall by kind of question"),
        ("distances", "recall", "Recall by distance, in exchanges"),
        ("groups", "kl_recovery", "KL recovery by group"),
    ):
        made = _by(found, part, figure)
        if made is not None:
            yield Title(title, 3)
            yield made
    uneven = [row for row in ordered(found["methods"]) if "layers" in row]
    if uneven:
        yield Text("Entries by layer, where layers keep different numbers:")
        yield Bullets(
            [
                f"{row['method']} at {ratio_text(row['ratio'])}: {', '.join(f'{n:.0f}' for n in row['layers'])}"
                for row in uneven
            ]
        )
    if found["errors"]:
        yield Title("Failures", 3)
        yield Bullets([f"{count} times {reason}" for reason, count in found["errors"].items()])


def as_text(summary: Summary) -> str:
    """The run's tables for a terminal."""
    parts = []
    for name, found in summary["benchmarks"].items():
        parts.append(f"{name}: {found['cases']} dialogues")
        parts += [f"  {'ok' if c['holds'] else 'NOT'}: {c['text']}" for c in found["controls"]]
        parts += [table(made.head, made.rows) for made in (_main(found), _written(found)) if made is not None]
        parts += [f"failed {count} times: {reason}" for reason, count in found["errors"].items()]
        parts.append("")
    return "\n".join(parts).rstrip()


def as_markdown(summary: Summary) -> str:
    """The report."""
    blocks = [*_head(summary), *_overview(summary)]
    for name in summary["benchmarks"]:
        blocks += [Title(name), *_benchmark(summary, name)]
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d2430; --soft: #5b6472; --line: #e2e0db;
  --ours: #eaf1fb; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1c2027; --ink: #e8eaee; --soft: #a3abb8;
  --line: #333944; --ours: #22304a; } }
* { box-sizing: border-box; } body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; } main { max-width: 1180px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; } h2 { font-size: 22px; margin: 44px 0 8px; }
h3 { font-size: 17px; margin: 26px 0 6px; } p { margin: 0 0 10px; max-width: 88ch; } p, li { color: var(--soft); }
ul { margin: 0 0 14px; padding-left: 20px; } .scroll { overflow-x: auto; background: var(--card); border-radius: 10px;
  border: 1px solid var(--line); padding: 6px 16px; margin-bottom: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 0 5px 18px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } tr.ours td { background: var(--ours); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 16px;
  margin: 14px 0; } .plots figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 8px; } .plots svg { width: 100%; height: auto; display: block; }
"""


def as_html(summary: Summary) -> str:
    """The report as one self-contained page."""
    parts = [block.html() for block in (*_head(summary), *_overview(summary))]
    for name, found in summary["benchmarks"].items():
        drawn = "".join(f"<figure>{svg}</figure>" for svg in plots(found))
        count, controls, *rest = (block.html() for block in _benchmark(summary, name))
        parts += [Title(name).html(), count, controls, f'<div class="plots">{drawn}</div>', *rest]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>sonic-kv eval</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def compare_text(runs: Mapping[str, Summary]) -> str:
    """Recovery, KL recovery and recall of several runs side by side."""
    parts = []
    shown = (("recovery", "recovery"), ("kl_recovery", "KL recovery"), ("recall", "recall"))
    for name in dict.fromkeys(name for run in runs.values() for name in run["benchmarks"]):
        found = {
            target: {(row["method"], row["ratio"]): row for row in run["benchmarks"][name]["methods"]}
            for target, run in runs.items()
            if name in run["benchmarks"]
        }
        cells = dict.fromkeys(cell for rows in found.values() for cell in rows)
        head = ["method", "removed", *(f"{target}: {title}" for _, title in shown for target in found)]
        body = [
            [
                method,
                ratio_text(ratio),
                *(
                    number(rows.get((method, ratio), {}).get(what))
                    for what, _ in shown
                    for rows in found.values()
                ),
            ]
            for method, ratio in sorted(cells, key=lambda c: (c[1] is not None, c[1] or 0.0, c[0]))
        ]
        parts.append(f"{name}\n{table(head, body)}")
    return "\n\n".join(parts)
