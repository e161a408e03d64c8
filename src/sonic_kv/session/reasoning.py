"""A reply's text, divided into its reasoning and its answer as it comes."""


class Division:
    """Takes text piece by piece.

    Args:
        tags: what stands around reasoning; None: there is none.
        inside: the prompt has opened the reasoning already.
    """

    def __init__(self, tags: tuple[str, str] | None, inside: bool = False) -> None:
        self._open, self._close = tags or ("", "")
        self._state = "answer" if tags is None else "reasoning" if inside else "start"
        self._held = ""
        self._thought = False

    @property
    def inside(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._state == "reasoning"

    def add(self, text: str, *, final: bool = False) -> tuple[str, str]:
        """Reasoning and answer that have become certain; all that is left if this is the `final` text."""
        self._held += text
        reasoning = ""
        if self._state == "start":
            self._start(final)
        if self._state == "reasoning":
            reasoning = self._think(final)
        if self._state == "behind":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "behind"
        if self._state != "answer":
            return reasoning, ""
        answer, self._held = self._held, ""
        return reasoning, answer

    def _start(self, final: bool) -> None:
        said = self._held.lstrip()
        if said.startswith(self._open):
            self._state, self._held = "reasoning", said[len(self._open) :]
        elif final or not self._open.startswith(said):
            self._state = "answer"

    def _think(self, final: bool) -> str:
        before, found, rest = self._held.partition(self._close)
        keep = 0
        if found:
            self._state = "behind"
        elif not final:
            sizes = range(min(len(self._close) - 1, len(before)), 0, -1)
            keep = next((n for n in sizes if self._close.startswith(before[-n:])), 0)
        certain = before[: len(before) - keep].rstrip("\n")  # lines without text at its ends are none of it
        self._held = rest if found else before[len(certain) :]
        certain = certain if self._thought else certain.lstrip("\n")
        self._thought = self._thought or bool(certain)
        return certain
