"""What mkdocs builds the site with: pages made from other files, and a check that nothing is loaded from elsewhere.

Contributing, changes, recipes and examples stand where people look for them in a repository; the reference of
commands and options is made from the option classes. Links to files that are no pages become plain text.
"""

import ast
import dataclasses
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from sonic_kv.cli.flags import has_flag, shown  # noqa: E402
from sonic_kv.cli.main import COMMANDS, SECTIONS  # noqa: E402
from sonic_kv.options import type_hints, wanted  # noqa: E402

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.M | re.S)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//"""
    r"""|<link[^>]+rel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*href=["']?(?:https?:)?//|@import"""
)


# --- pages made from other files --------------------------------------------------------------


def copies() -> dict[str, str]:
    """Files of the repository that are pages of the site: path in the repository → address of the page."""
    recipes = {path.relative_to(ROOT).as_posix(): f"recipes/{path.parent.name}.md" for path in recipe_pages()}
    return {"CONTRIBUTING.md": "guides/contributing.md", "CHANGELOG.md": "changes.md", **recipes}


def recipe_pages() -> list[Path]:
    """The READMEs of the recipes."""
    return sorted((ROOT / "recipes").glob("*/README.md"))


def examples() -> str:
    """A page with every example in full."""
    head = (
        "They stand in the folder `examples/` of the repository, beside a notebook that shows what is kept of a chat "
        "(`compress_your_chat.ipynb`)."
    )
    parts = ["# Examples", "", head]
    for path in sorted((ROOT / "examples").glob("*.py")):
        summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        parts += [
            "",
            f"## {path.name}",
            "",
            summary,
            "",
            "```python",
            path.read_text(encoding="utf-8").strip(),
            "```",
        ]
    return "\n".join(parts) + "\n"


def recipes() -> str:
    """A page that lists the recipes."""
    parts = [
        "# Recipes",
        "",
        "Scripts and settings behind what is shown elsewhere, in the folder `recipes/` of the repository.",
        "",
    ]
    for path in recipe_pages():
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        parts.append(f"- [{title}](../recipes/{path.parent.name}.md)")
    return "\n".join(parts) + "\n"


def options() -> str:
    """A page with every command, its usage, and every option with its default, bounds and meaning."""
    parts = ["# Commands and options", "", OPTIONS_HEAD, "", "## Commands", ""]
    for command in COMMANDS:
        target = (" TARGET…" if command.many else " [TARGET]") if command.target else ""
        parts += [f"### sonic-kv {command.name}", "", f"{_sentence(command.help)}", ""]
        if command.target:
            parts += [f"`{target.strip()}`: {_sentence(command.target)}", ""]
        if command.sections:
            named = ", ".join(_section_link(name, name in command.file_only) for name in command.sections)
            parts += [f"Options: {named}.", ""]
        if command.json:
            parts += [f"`--json` prints {command.json}.", ""]
    parts += ["## Options", ""]
    for section, cls in SECTIONS.items():
        parts += [
            f"### {section}",
            "",
            f"{(cls.__doc__ or '').strip().splitlines()[0]} In Python: `{cls.__name__}`.",
            "",
        ]
        parts += ["| option | takes | default | meaning |", "|---|---|---|---|"]
        flags = any(section in c.sections and section not in c.file_only for c in COMMANDS)
        parts += [*_rows(cls, flags), ""]
    return "\n".join(parts)


OPTIONS_HEAD = """Every option is a flag (`--min-segment-tokens 64`), a key in a TOML file that `--config FILE` reads
(`min_segment_tokens = 64` in its section), or both. Options in *italics* have no flag. Flags win over the file.
`--print-config` prints all options of a command as such a file; `--debug` shows where an error comes from. This page is
made from the code."""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _section_link(name: str, file_only: bool) -> str:
    return f"[{name}](#{name})" + (" (in a file only)" if file_only else "")


def _rows(cls: type, flags: bool) -> Iterator[str]:
    hints = type_hints(cls)
    for field in dataclasses.fields(cls):
        flag = f"`--{field.name.replace('_', '-')}`" if flags and has_flag(field) else f"*`{field.name}`*"
        default = "" if field.default in (None, (), "") else f"`{shown(field.default)}`"
        help = field.metadata["help"].replace("|", "\\|")
        yield f"| {flag} | {wanted(hints[field.name])} | {default} | {help} |"


# --- mkdocs -----------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    made = {uri: (ROOT / path).read_text(encoding="utf-8") for path, uri in copies().items()}
    made |= {
        "reference/options.md": options(),
        "reference/examples.md": examples(),
        "reference/recipes.md": recipes(),
    }
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links that leave docs/ to the page that shows the file; without one they become text."""
    sources = {uri: path for path, uri in copies().items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    at = posixpath.dirname(page.file.src_uri)

    def mended(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        target, hash, anchor = link.partition("#")
        if ":" in target or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        uri = copies().get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if path.startswith("examples"):
            uri, hash, anchor = "reference/examples.md", "#", posixpath.basename(path).replace(".", "")
            anchor = anchor if path.endswith(".py") else ""
        if path.startswith("recipes") and f"{path}/README.md" in copies():
            uri = copies()[f"{path}/README.md"]
        if uri is None or files.get_file_from_path(uri) is None:
            return text
        return f"{mark}[{text}]({posixpath.relpath(uri, at or '.')}{hash if anchor else ''}{anchor})"

    markdown = re.sub(
        r"`[^`\n]+`", lambda code: code[0].replace("\\|", "|"), markdown
    )  # GitHub's tables need it
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(mended, part) for part in parts)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that would load anything from elsewhere."""
    from mkdocs.exceptions import PluginError

    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output


try:  # the reference of classes shows an option's default and help text in place of its declaration
    import griffe

    class OptionDefaults(griffe.Extension):
        """Shows a field `name = option(default, "help", …)` as `name = default`, documented by its help text."""

        def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
            value = attr.value
            if isinstance(value, griffe.ExprCall) and str(value.function) in ("option", "share"):
                default, help = value.arguments[:2]
                attr.value = default
                attr.docstring = griffe.Docstring(ast.literal_eval(str(help)), parent=attr)
except ImportError:  # the pages alone are made without mkdocs
    pass
