"""The report's plots, as SVG texts."""

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sonic_kv.text import percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fbf", "#c2571a", "#2a8a57", "#8a2f6b", "#8a6d10", "#0f8a9d")  # the first is SONIC's
OTHERS = "#c9ccd2"
BEST = 5  # rivals in a colour of their own

Rows = Mapping[tuple[str, float], dict[str, Any]]


def plots(found: dict[str, Any]) -> Iterator[str]:
    """The plots of one benchmark's summary."""
    rows = {
        (r["method"], r["ratio"]): r
        for r in found["methods"]
        if r["ratio"] is not None and r.get("kl_recovery")
    }
    ratios = sorted({ratio for _, ratio in rows})
    if not ratios:
        return
    middle = ratios[len(ratios) // 2]
    colours = _colours(rows, middle)
    yield _draw("Quality against entries kept", _quality, rows, colours, ratios)
    yield _draw(f"Cost and quality, {percent_text(middle)} removed", _cost, rows, colours, middle)
    if any(row["distances"] for row in rows.values()):
        title = f"Recall by distance, {percent_text(middle)} removed"
        references = {r["method"]: r for r in found["methods"] if r["method"] in ("full", "none")}
        yield _draw(title, _distance, rows, colours, middle, references)
    yield _draw(f"Recovery by turn, {percent_text(middle)} removed", _turn, rows, colours, middle)
    if any("groups" in row for row in rows.values()):
        yield _draw(f"KL recovery by group, {percent_text(middle)} removed", _groups, rows, colours, middle)


def _colours(rows: Rows, ratio: float) -> dict[str, str]:
    """SONIC and the best rivals have colours, best first."""

    def quality(method: str) -> float:
        row = rows.get((method, ratio))
        return -9.0 if row is None else float(row["kl_recovery"]["value"])

    rivals = sorted({method for method, _ in rows} - {"sonic"}, key=quality, reverse=True)
    ours = ["sonic"] if any(method == "sonic" for method, _ in rows) else []
    return dict(zip((*ours, *rivals[: BEST + 1 - len(ours)]), COLOURS[1 - len(ours) :], strict=False))


def _draw(title: str, plot: Any, *arguments: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # texts stay texts, and the same figures give the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sonic-kv", "font.size": 10}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontweight="bold")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(alpha=0.25)
        plot(axes, *arguments)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    svg = text[text.index("<svg") :]
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _style(method: str, colours: Mapping[str, str]) -> dict[str, Any]:
    return {
        "label": method,
        "color": colours.get(method, "#555555"),
        "linestyle": "-" if method in colours else ":",  # a reference
        "linewidth": 2.6 if method == "sonic" else 1.6,
        "marker": "o",
        "markersize": 4,
    }


def _quality(axes: "Axes", rows: Rows, colours: Mapping[str, str], ratios: list[float]) -> None:
    for method in sorted({method for method, _ in rows}, key=lambda m: m in colours):
        known = [ratio for ratio in ratios if (method, ratio) in rows]
        kept = [100 * (1 - ratio) for ratio in known]
        figures = [rows[method, ratio]["kl_recovery"] for ratio in known]
        values = [figure["value"] for figure in figures]
        if method not in colours:
            axes.plot(kept, values, color=OTHERS, linewidth=1, zorder=1)
            continue
        errors = [[f["value"] - f["low"] for f in figures], [f["high"] - f["value"] for f in figures]]
        width = 2.6 if method == "sonic" else 1.6
        axes.errorbar(
            kept,
            values,
            yerr=errors,
            color=colours[method],
            linewidth=width,
            marker="o",
            markersize=4,
            capsize=2,
            label=method,
        )
    axes.plot([], [], color=OTHERS, label="other methods")
    axes.set(xlabel="entries kept, % of history", ylabel="KL recovery", xscale="log")
    axes.set_xticks([100 * (1 - ratio) for ratio in ratios], [f"{100 * (1 - r):.0f}" for r in ratios])
    axes.minorticks_off()
    axes.axhline(1.0, color="#555", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, fontsize=9)


def _cost(axes: "Axes", rows: Rows, colours: Mapping[str, str], ratio: float) -> None:
    for (method, at), row in rows.items():
        if at == ratio:
            colour = colours.get(method, "#9aa0aa")
            place = row["seconds"], row["kl_recovery"]["value"]
            axes.scatter(*place, color=colour, s=50 if method == "sonic" else 24)
            axes.annotate(
                method,
                place,
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=8,
                color=colours.get(method, "#6b7280"),
            )
    axes.set(xlabel="seconds a dialogue", ylabel="KL recovery")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)


def _distance(
    axes: "Axes",
    rows: Rows,
    colours: Mapping[str, str],
    ratio: float,
    references: Mapping[str, dict[str, Any]],
) -> None:
    lines = [
        (method, rows[method, ratio], colours[method], "-") for method in colours if (method, ratio) in rows
    ]
    lines += [(name, row, "#555", ":") for name, row in references.items()]
    for method, row, colour, style in lines:
        names = [name for name, part in row["distances"].items() if part["recall"] is not None]
        values = [row["distances"][name]["recall"]["value"] for name in names]
        width = 2.6 if method == "sonic" else 1.6
        axes.plot(
            names,
            values,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            linewidth=width,
            label=method,
        )
    axes.set(xlabel="exchanges since it was said", ylabel="recall", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=9)


def _turn(axes: "Axes", rows: Rows, colours: Mapping[str, str], ratio: float) -> None:
    for method in colours:
        if (method, ratio) in rows:
            known = [
                (int(turn), f["value"]) for turn, f in rows[method, ratio]["turns"].items() if f is not None
            ]
            turns, values = zip(*known, strict=True) if known else ((), ())
            width = 2.6 if method == "sonic" else 1.6
            axes.plot(
                turns, values, color=colours[method], linewidth=width, marker="o", markersize=4, label=method
            )
    axes.set(xlabel="turn", ylabel="recovery", ylim=(-0.5, 1.5))
    axes.legend(frameon=False, fontsize=9)


def _groups(axes: "Axes", rows: Rows, colours: Mapping[str, str], ratio: float) -> None:
    methods = [method for method in colours if (method, ratio) in rows][:4]
    names = sorted({name for method in methods for name in rows[method, ratio].get("groups", {})})
    width = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        figures = [rows[method, ratio]["groups"].get(name, {}).get("kl_recovery") for name in names]
        places = [i - 0.4 + (number + 0.5) * width for i in range(len(names))]
        values = [0.0 if figure is None else figure["value"] for figure in figures]
        axes.bar(places, values, width, color=colours[method], label=method)
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 14 else 45)
    axes.set(ylabel="KL recovery", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=9, ncols=len(methods))
