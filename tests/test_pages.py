"""The pages that people read: links lead somewhere, and the log's index names every experiment."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    """A page's path, as the test's name shows it."""
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {
        re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).strip().replace(" ", "-") for head in heads
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{name(page)}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(found), f"{name(page)}: {link} is no heading there"


def test_the_logs_index_names_every_experiment() -> None:
    index = ROOT / "docs" / "log" / "index.md"
    named = re.findall(r"^- \d{4}-\d\d-\d\d · \[.+\]\((.+)\)$", index.read_text(encoding="utf-8"), re.M)
    files = [path.name for path in index.parent.glob("*.md") if path != index]
    assert sorted(named) == sorted(files)
