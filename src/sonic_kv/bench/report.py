"""What every benchmark makes of its figures: a text in Markdown, JSON, plots, and a folder of them."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sonic_kv import __version__
from sonic_kv.bench.timing import Machine
from sonic_kv.errors import ConfigError
from sonic_kv.files import write_atomic
from sonic_kv.text import bytes_text

Line = tuple[Sequence[float], Sequence[float]]  # places on both axes


@dataclass(frozen=True)
class Panel:
    """A plot of several lines, by name; its vertical axis begins at 0."""

    title: str
    xlabel: str
    lines: Mapping[str, Line]


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        text: figures for people, in Markdown.
        data: JSON-able: the same, and what stands behind them.
        panels: plots, in rows.
    """

    text: str
    data: Any
    panels: Sequence[Sequence[Panel]] = ()

    def write(self, folder: str | Path) -> None:
        """`report.md` and `result.json`, and `plot.svg` if there is a plot."""
        folder = Path(folder)
        write_atomic(folder / "report.md", self.text.encode())
        write_atomic(folder / "result.json", json.dumps(self.data, indent=1).encode())
        if self.panels:
            write_atomic(folder / "plot.svg", svg(self.panels))


def check_plot() -> None:
    """Raise `ConfigError` unless a plot can be drawn."""
    if find_spec("matplotlib") is None:
        raise ConfigError("the plot needs matplotlib: pip install 'sonic-kv[bench]'; or leave --out away")


def on(machine: Machine) -> str:
    """What figures were taken on, in one sentence."""
    return (
        f"sonic-kv {__version__}; {machine.device}, {machine.threads} threads, {machine.dtype}; reads "
        f"{bytes_text(machine.bytes_per_second)}/s, multiplies {machine.operations_per_second / 1e9:.0f} G "
        "operations/s."
    )


def svg(panels: Sequence[Sequence[Panel]]) -> bytes:
    """The panels as an SVG, the legend in the first."""
    from matplotlib.figure import Figure

    columns = max(map(len, panels))
    figure = Figure(figsize=(5 * columns + 1, 4.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), columns, squeeze=False)
    for row, axes in zip(panels, grid, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            for name, (across, up) in panel.lines.items():
                axis.plot(across, up, label=name)
            axis.set(xlabel=panel.xlabel, title=panel.title)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0].legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue()
