"""The report's plots: quality by the share of entries kept, and predicted damage against what was measured."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from sonic_kv.text import percent_text

COLOURS = ("#1f5fbf", "#c2571a", "#2a8a57", "#8a2f6b", "#8a6d10", "#0f8a9d")  # the first is the subject's
OTHERS = "#b9bec7"


def plot(suite: dict[str, Any]) -> str | None:
    """KL recovery of every method of a suite (as `summary.json` has it), as SVG.

    The subject and the best rivals have colours and error bars, all others are grey. None: matplotlib is not
    installed, or there is nothing to draw.
    """
    rows = {
        (row["method"], row["ratio"]): row["kl_recovery"]
        for row in suite["methods"]
        if row["ratio"] is not None and row.get("kl_recovery")
    }
    if not rows or find_spec("matplotlib") is None:
        return None
    with _drawing() as (axes, text):
        ratios = sorted({ratio for _, ratio in rows})
        coloured = dict(zip(_best(rows, suite["subject"], ratios), COLOURS, strict=False))
        for method in sorted({method for method, _ in rows}, key=lambda name: name in coloured):
            known = [ratio for ratio in ratios if (method, ratio) in rows]
            found = [rows[method, ratio] for ratio in known]
            values = [f["value"] for f in found]
            kept = [100 * (1 - ratio) for ratio in known]
            if method not in coloured:
                axes.plot(kept, values, color=OTHERS, linewidth=1, zorder=1)
                continue
            spread = [[f["value"] - f["low"] for f in found], [f["high"] - f["value"] for f in found]]
            style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "label": method}
            axes.errorbar(
                kept,
                values,
                yerr=spread,
                color=coloured[method],
                linewidth=2.6 if method == suite["subject"] else 1.6,
                **style,
            )
        if any(method not in coloured for method, _ in rows):
            axes.plot([], [], color=OTHERS, label="other methods")
        axes.set(xlabel="entries kept, % of history", ylabel="KL recovery", xscale="log")
        axes.set_xticks(
            [100 * (1 - ratio) for ratio in ratios], [percent_text(1 - ratio) for ratio in ratios]
        )
        axes.minorticks_off()
        axes.axhline(1.0, color="#555", linewidth=0.8, linestyle=":")
        axes.legend(frameon=False, fontsize=9)
    return text.getvalue()


def plot_damage(points: Sequence[dict[str, Any]]) -> str | None:
    """Predicted against measured divergence of every dialogue (as `damage.points` has it), a colour for each budget, as
    SVG; None: matplotlib is not installed, or there is nothing to draw."""
    points = [point for point in points if point["predicted"] > 0.0 and point["measured"] > 0.0]
    if not points or find_spec("matplotlib") is None:
        return None
    with _drawing() as (axes, text):
        cells = list(dict.fromkeys((point["method"], point["ratio"]) for point in points))
        for (method, ratio), colour in zip(cells, [*COLOURS] * len(cells), strict=False):
            inside = [p for p in points if (p["method"], p["ratio"]) == (method, ratio)]
            label = method if ratio is None else f"{method}, {percent_text(ratio)} removed"
            found = [[p[name] for p in inside] for name in ("predicted", "measured")]
            axes.scatter(*found, s=14, color=colour, alpha=0.75, linewidths=0, label=label)
        ends = [min(p["predicted"] for p in points), max(p["predicted"] for p in points)]
        axes.plot(ends, ends, color="#555", linewidth=0.8, linestyle=":")
        axes.set(
            xlabel="predicted, nats a token", ylabel="measured KL, nats a token", xscale="log", yscale="log"
        )
        axes.legend(frameon=False, fontsize=9)
    return text.getvalue()


@contextmanager
def _drawing() -> Iterator[tuple[Any, io.StringIO]]:
    """Axes, and where they are written as SVG in the end."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings: Any = {"svg.hashsalt": "sonic-kv", "svg.fonttype": "none"}
    settings |= {"axes.spines.top": False, "axes.spines.right": False}
    text = io.StringIO()
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        yield axes, text
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _best(rows: dict[tuple[str, float], Any], subject: str | None, ratios: Sequence[float]) -> list[str]:
    """The subject, then the methods with the highest sum over the ratios that all have."""

    def quality(method: str) -> float:
        return sum(rows[method, r]["value"] if (method, r) in rows else -1.0 for r in ratios)

    methods = sorted({method for method, _ in rows}, key=quality, reverse=True)
    return sorted(methods, key=lambda method: method != subject)
