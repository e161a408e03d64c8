"""The page for people: files of the package, which load nothing from elsewhere."""

from importlib.resources import files

from fastapi import Response

PARTS = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "panel.js": "text/javascript",
    "markdown.js": "text/javascript",
    "dialogues.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
PATHS = frozenset({"/", *(f"/page/{name}" for name in PARTS)})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def part_of_page(name: str) -> Response:
    """One of the page's files."""
    text = files("sonic_kv.server").joinpath("web", name).read_text(encoding="utf-8")
    return Response(text, media_type=PARTS[name], headers=HEADERS)
