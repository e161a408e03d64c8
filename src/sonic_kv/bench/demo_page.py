"""The page that `sonic-kv demo` writes: one self-contained HTML file with inline SVG, light and dark."""

import itertools
from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, log10

from sonic_kv.bench.demo import TIMES, Answer, Result, Summary, Way, cells, exchanges, gain, summaries
from sonic_kv.model.messages import Message
from sonic_kv.text import bytes_text

BAR_HEIGHT, BAR_STEP, LABEL_WIDTH, BAR_WIDTH = 20, 34, 136, 200
CHART_WIDTH, CHART_HEIGHT = 1000, 320
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 150, 14, 44

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d2430; --soft: #5b6472;
  --line: #e2e0db; --good: #17703f; --bad: #b3261e; --user: #eef1f6; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1c2027; --ink: #e8eaee;
  --soft: #a3abb8; --line: #333944; --good: #6fd79b; --bad: #ff9489; --user: #272d38; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 0; } .lead { color: var(--soft); max-width: 68ch; margin-bottom: 14px; }
.gain { max-width: 68ch; margin-bottom: 28px; font-weight: 600; }
.note { color: var(--soft); font-size: 14px; margin-bottom: 14px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  margin-bottom: 20px; min-width: 0; }
.grid section { margin-bottom: 0; } .grid { margin-bottom: 20px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 14px system-ui, sans-serif; fill: var(--ink); } svg .soft { fill: var(--soft); font-size: 13px; }
svg .rule { stroke: var(--line); } svg .track { fill: var(--line); opacity: 0.55; }
.scroll { overflow-x: auto; } .wide svg { min-width: 640px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 0 7px 18px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: 14px; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 9px; }
.turn { display: grid; grid-template-columns: 88px minmax(0, 62ch); gap: 0 12px; align-items: baseline;
  margin: 0 0 7px; overflow-wrap: anywhere; } .turn b { font-size: 13px; color: var(--soft); font-weight: 500; }
.user p { background: var(--user); border-radius: 9px; padding: 4px 12px; justify-self: start; }
.user { margin-top: 13px; } .assistant p, .system p { padding: 0 12px; }
.asked { border-left: 3px solid var(--line); padding-left: 14px; margin: 20px 0 20px -17px; }
.answers { display: grid; grid-template-columns: auto auto 1fr; gap: 3px 14px; margin: 4px 0 0 100px; padding: 0 12px;
  list-style: none; overflow-wrap: anywhere; }
.answers li { display: contents; } .answers .name { color: var(--soft); white-space: nowrap; }
.right { color: var(--good); font-weight: 600; } .wrong { color: var(--bad); font-weight: 600; }
@media (max-width: 640px) { .turn { grid-template-columns: 1fr; } .answers { margin-left: 0; } }
footer { color: var(--soft); font-size: 14px; }
"""


def _palette(ways: Sequence[Way]) -> str:
    """Slate for full context, ochre for no history, plum for the newest entries, blues by compression."""
    light, dark = ["#4a5568", "#a86a12", "#8a2f6b"], ["#c3cad6", "#e0a94f", "#e08ac4"]
    for number in range(len(ways) - 3):
        step = number / max(len(ways) - 4, 1)
        light.append(f"hsl(214 80% {52 - 26 * step:.0f}%)")
        dark.append(f"hsl(214 85% {56 + 28 * step:.0f}%)")
    sides = ("".join(f"--m{i}: {c}; " for i, c in enumerate(side)) for side in (light, dark))
    return ":root {{ {}}} @media (prefers-color-scheme: dark) {{ :root {{ {}}} }}".format(*sides)


def bars(title: str, rows: Sequence[tuple[str, float, str]], top: float) -> str:
    """Horizontal bars: label, value, value as text; `top` is the full width."""
    height = BAR_STEP * len(rows)
    described = escape(f"{title}: " + ", ".join(f"{label} {text}" for label, _, text in rows))
    parts = [
        f'<svg viewBox="0 0 {LABEL_WIDTH + BAR_WIDTH + 78} {height}" role="img" aria-label="{described}">'
    ]
    for i, (label, value, text) in enumerate(rows):
        y, middle = i * BAR_STEP + (BAR_STEP - BAR_HEIGHT) / 2, i * BAR_STEP + BAR_STEP / 2 + 5
        width = BAR_WIDTH * value / top if top else 0.0
        parts.append(
            f'<text x="0" y="{middle}">{escape(label)}</text>'
            f'<rect class="track" x="{LABEL_WIDTH}" y="{y}" width="{BAR_WIDTH}" height="{BAR_HEIGHT}" rx="3"/>'
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{max(width, 2):.1f}" height="{BAR_HEIGHT}" rx="3" '
            f'style="fill: var(--m{i})"/>'
            f'<text x="{LABEL_WIDTH + BAR_WIDTH + 10}" y="{middle}">{escape(text)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _round_step(top: float, ticks: int) -> int:
    """A step of 1, 2 or 5 times a power of ten that cuts `top` into about `ticks` parts."""
    raw = max(top / ticks, 1.0)
    power = 10 ** int(log10(raw))
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= raw))


def _apart(places: Sequence[float], gap: float, bottom: float) -> list[float]:
    """Places for labels, at least `gap` apart and none below `bottom`, near where they should be."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for above, i in itertools.pairwise(order):
        found[i] = max(found[i], found[above] + gap)
    limit = bottom
    for i in reversed(order):
        found[i] = min(found[i], limit)
        limit = found[i] - gap
    return found


def lines(title: str, names: Sequence[str], series: Sequence[Sequence[float]]) -> str:
    """One line per series over the closed segments, labelled at its end."""
    count, peak = max(map(len, series)), max(1.0, *map(max, series))
    step = _round_step(peak, 4)
    top = step * ceil(peak / step)
    right, floor = CHART_WIDTH - MARGIN_RIGHT, CHART_HEIGHT - MARGIN_BOTTOM

    def x(exchange: int) -> float:
        return MARGIN_LEFT + (right - MARGIN_LEFT) * exchange / max(count - 1, 1)

    def y(entries: float) -> float:
        return floor - (floor - MARGIN_TOP) * entries / top

    ends = ", ".join(f"{name} {values[-1]:.0f}" for name, values in zip(names, series, strict=True))
    described = escape(f"{title}; at the end: {ends}")
    parts = [f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{described}">']
    for tick in range(0, top + 1, step):
        parts.append(
            f'<line class="rule" x1="{MARGIN_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="soft" x="{MARGIN_LEFT - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for exchange in range(0, count, _round_step(count, 8)):
        parts.append(
            f'<text class="soft" x="{x(exchange):.1f}" y="{floor + 20}" text-anchor="middle">{exchange}</text>'
        )
    parts.append(
        f'<text class="soft" x="{(MARGIN_LEFT + right) / 2:.0f}" y="{CHART_HEIGHT - 4}" text-anchor="middle">'
        "closed segments</text>"
    )
    labels = _apart([y(values[-1]) + 5 for values in series], 19, floor + 5)
    for i, (name, values, label) in enumerate(zip(names, series, labels, strict=True)):
        points = " ".join(f"{x(k):.1f},{y(value):.1f}" for k, value in enumerate(values))
        parts.append(
            f'<polyline points="{points}" style="fill: none; stroke: var(--m{i}); stroke-width: 2.5; '
            f'stroke-linejoin: round"/>'
            f'<text x="{right + 10}" y="{label:.1f}" style="fill: var(--m{i}); font-weight: 600">'
            f"{escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _table(rows: Sequence[Summary]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in cells(rows[0]))
    body = "".join(
        f'<tr><td><span class="key" style="background: var(--m{i})"></span>{escape(row.way)}</td>'
        + "".join(f"<td>{cell}</td>" for cell in cells(row).values())
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">way</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _mark(answer: Answer) -> str:
    if answer.right is None:
        return "<span></span>"
    return '<span class="right">✓ right</span>' if answer.right else '<span class="wrong">✗ wrong</span>'


def _turn(message: Message, label: str | None = None) -> str:
    role = escape(message["role"])
    return f'<div class="turn {role}"><b>{label or role}</b><p>{escape(message["content"])}</p></div>'


def _dialogue(result: Result) -> Iterator[str]:
    """The first dialogue; at each question what every way answered."""
    messages, first = result.cases[0].messages, [replays[0] for replays in result.replays]
    if messages[0]["role"] == "system":
        yield _turn(messages[0])
    for start, end in exchanges(messages):
        if start + 1 not in first[0].answers:
            yield "".join(map(_turn, messages[start:end]))
            continue
        answers = "".join(
            f'<li>{_mark(one.answers[start + 1])}<span class="name">{escape(way.name)}</span>'
            f"<span>{escape(one.answers[start + 1].text.strip()) or '(nothing)'}</span></li>"
            for way, one in zip(result.ways, first, strict=True)
        )
        question, written = _turn(messages[start]), _turn(messages[start + 1], "as written")
        yield f'<div class="asked">{question}{written}<ul class="answers">{answers}</ul></div>'
        yield "".join(map(_turn, messages[start + 2 : end]))


def page(result: Result) -> str:
    """The whole page."""
    rows = summaries(result)
    names = [row.way for row in rows]
    first = [replays[0].entries for replays in result.replays]
    count, asked, known = len(result.cases), rows[0].questions, rows[0].right is not None
    over = f"{asked} questions in {count} dialogue{'s' if count > 1 else ''}"
    title = "Right answers" if known else "Answers that are full context's"
    counts = [(row.way, row.right if row.right is not None else row.same) for row in rows]
    answers = [(name, float(number), f"{number} of {asked}") for name, number in counts]
    sizes = [(row.way, row.bytes, bytes_text(row.bytes)) for row in rows]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sonic-kv demo</title>
<style>{STYLE}{_palette(result.ways)}</style>
</head>
<body>
<main>
<h1>What a dialogue's cache must hold</h1>
<p class="lead">The same dialogues, with their whole history in the KV cache, with none of it, and with past
segments compressed. Model: {escape(result.model)}, {result.parameters:,} parameters.</p>
<p class="gain">{escape(gain(rows))}</p>
<div class="grid">
<section><h2>{title}</h2><p class="note">{over}</p>
{bars(title, answers, asked)}</section>
<section><h2>Cache</h2><p class="note">bytes of keys and values at a dialogue's end, mean</p>
{bars("Cache", sizes, max(row.bytes for row in rows))}</section>
</div>
<section><h2>Entries in the cache</h2>
<p class="note">of closed history, after each closed segment of the first dialogue</p>
<div class="scroll wide">{lines("Entries after each closed segment", names, first)}</div></section>
<section><h2>Figures</h2>
<p class="note">entries and cache at a dialogue's end, time of a dialogue, on average.
{escape(TIMES.replace("`", ""))}</p>
{_table(rows)}</section>
<section><h2>The first dialogue</h2>
<p class="note">the history is the written one; below each question, what the model answers in every way</p>
{"".join(_dialogue(result))}</section>
<footer>Written by sonic-kv demo.</footer>
</main>
</body>
</html>
"""
