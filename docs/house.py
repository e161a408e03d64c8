"""Draws the house from its code: `python docs/house.py` writes docs/house.svg beside this file.

Folders stand in the order in which they may import each other, lower ones below; of two that stand side by side neither
imports the other. An arrow means "imports"; what follows from other arrows is left out.
`tests/test_architecture.py` reads the same graph and holds the order.
"""

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sonic_kv"

# From the ground up: a folder imports from those before it only. A folder's name stands for all modules in it.
FOLDERS = (
    ("errors",),
    ("options", "text"),
    ("files",),
    ("cache",),
    ("model",),
    ("compress",),
    ("session", "data"),
    ("training", "server", "eval"),
    ("bench", "integrations"),
    ("cli",),
)
LEVELS = {name: number for number, names in enumerate(FOLDERS) for name in names}
OPTIONS = "options"  # plain data, which every folder may read
GROUND = ("errors", "options", "text", "files")  # below everything: the picture draws no arrows to them

Graph = dict[str, dict[str, int]]


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package by dotted name below `sonic_kv`; the package itself is ''."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, package: str) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a file imports anywhere (inside functions too), with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = f"sonic_kv.{package}".rstrip(".").split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def home(name: str, known: dict[str, Path]) -> str | None:
    """The module of this package that a dotted import name refers to; None for other packages."""
    if name.split(".")[0] != "sonic_kv":
        return None
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def edges(package: Path = PACKAGE) -> Graph:
    """For every module the modules of this package it imports, with the line of the import."""
    known = modules(package)
    graph: Graph = {}
    for name, path in known.items():
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = ((home(target, known), line) for target, line in imported(path, inside))
        graph[name] = {target: line for target, line in targets if target is not None and target != name}
    return graph


def folder(module: str) -> str:
    """The folder, or the module at the top, in which a module stands."""
    return module.split(".")[0]


def is_options(module: str) -> bool:
    """Whether a module only declares options."""
    return module.rpartition(".")[2] == OPTIONS


def between(graph: Graph) -> set[tuple[str, str]]:
    """Pairs of folders of which the first imports the second, options apart."""
    return {
        (folder(source), folder(target))
        for source, targets in graph.items()
        for target in targets
        if source and target and folder(source) != folder(target) and not is_options(target)
    }


def nearest(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs that follow from no others: the picture shows the shortest ways only."""

    def reaches(start: str, end: str, without: tuple[str, str]) -> bool:
        ways = [b for a, b in pairs if a == start and (a, b) != without]
        return end in ways or any(reaches(way, end, without) for way in ways)

    return {pair for pair in pairs if not reaches(*pair, without=pair)}


WIDTH, ROW, GAP, MARGIN, LINE = 880, 30, 34, 20, 15
STYLE = (
    "text{font:13px sans-serif;fill:#1f2328}.small{font-size:11px;fill:#59636e}"
    "rect{fill:#f6f8fa;stroke:#d1d9e0}path{fill:none;stroke:#8c959f}.head{fill:#8c959f;stroke:none}"
    "@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}rect{fill:#151b23;stroke:#3d444d}}"
)


def wrapped(words: list[str], width: int) -> list[str]:
    """Words in lines of at most `width` characters."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines.append("")
        lines[-1] += (" · " if lines[-1] else "") + word
    return lines


def draw() -> str:
    """The picture as SVG."""
    graph, boxes, shapes, top = edges(), dict[str, tuple[float, float, float, float]](), list[str](), MARGIN
    for names in reversed(FOLDERS):
        width = (WIDTH - 2 * MARGIN - GAP * (len(names) - 1)) / len(names)
        inside = {
            name: sorted(m.split(".", 1)[1] for m in graph if m.startswith(f"{name}.") and "_" not in m[-1])
            for name in names
        }
        lines = {name: wrapped(found, int(width / 6)) if found else [] for name, found in inside.items()}
        height = ROW + LINE * max(map(len, lines.values()))
        for number, name in enumerate(names):
            left = MARGIN + number * (width + GAP)
            boxes[name] = (left, top, width, height)
            shapes.append(f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="6"/>')
            shapes.append(f'<text x="{left + 10:.0f}" y="{top + 20}">{escape(name)}</text>')
            for at, line in enumerate(lines[name]):
                y = top + 20 + LINE * (at + 1)
                shapes.append(f'<text class="small" x="{left + 10:.0f}" y="{y}">{escape(line)}</text>')
        top += height + GAP
    for number, (upper, lower) in enumerate(
        sorted(pair for pair in nearest(between(graph)) if pair[1] not in GROUND)
    ):
        (x1, y1, w1, h1), (x2, y2, w2, _) = boxes[upper], boxes[lower]
        shift = (number % 5 - 2) * 12
        a, b = x1 + w1 / 2 + shift, min(max(x1 + w1 / 2 + shift, x2 + 20), x2 + w2 - 20)
        shapes.append(
            f'<path d="M{a:.0f} {y1 + h1:.0f} C{a:.0f} {y1 + h1 + 20:.0f} {b:.0f} {y2 - 24:.0f} {b:.0f} {y2 - 6:.0f}"/>'
        )
        shapes.append(
            f'<path class="head" d="M{b - 4:.0f} {y2 - 7:.0f} L{b + 4:.0f} {y2 - 7:.0f} L{b:.0f} {y2:.0f}Z"/>'
        )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *shapes, "</svg>", ""])


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".svg")
    target.write_text(draw(), encoding="utf-8")
    print(target)
