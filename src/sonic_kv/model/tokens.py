"""Rendered text → token ids: as the tokenizer has them, except that a special token which a message spells is text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from sonic_kv.model.common import common, common_suffix

MARK = "\ufdd0"  # no character: cuts a spelled token behind its first character; twice, it stands for itself
BLOCKS = 4096  # texts whose ids are remembered: about the messages of a few hundred dialogues

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte as SentencePiece writes it
_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}  # as byte-level tokenizers write them
_SINGLE_MARK = re.compile(f"(?<!{MARK}){MARK}(?!{MARK})")


class Tokens:
    """A tokenizer, and which of its added tokens a message may not spell.

    A text is tokenised in blocks that begin with an added token, which no tokenizer merges with what is before it: a
    dialogue that has grown costs its new blocks only.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        special = {*(t.content for t in added if t.special), *tokenizer.all_special_tokens}
        self.names = _longest_first({*special, *(t.content for t in added)})
        self._special = _longest_first(special)
        splits = [t.content for t in added if not (t.normalized or t.lstrip or t.single_word)]
        self._starts = _any_of(_longest_first(splits)) if getattr(tokenizer, "is_fast", False) else None
        self._lead = next((t for t in self.names if t in splits), "")
        self._openings = {name[:2] for name in self.names}
        self._named = _any_of(self.names)
        self._protected = {"assistant": _any_of(self._special, ahead=True)}
        self._protected_elsewhere = self._protected["assistant"]
        self._block = lru_cache(BLOCKS)(self._block_ids)

    def protect(self, source: str, rendered: str, reasoning: Iterable[str] = ()) -> None:
        """Say which added tokens a message may not spell: special ones, and those with which the template builds turns.

        A reply may hold what its model writes there, as the tags around reasoning and tool calls.

        Args:
            source: the template.
            rendered: what it makes of user and assistant.
            reasoning: tags that a reply may hold.
        """
        turns = [name for name in self.names if name in self._special or name in rendered]
        built = [name for name in self.names if name in turns or name in source]
        own = [name for name in turns if name not in reasoning]
        self._protected = {"assistant": _any_of(own, ahead=True)}
        self._protected_elsewhere = _any_of(built, ahead=True)

    def marked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with marks in the tokens that it spells."""
        return {
            key: value if key == "role" else self.mark(value, message["role"])
            for key, value in message.items()
        }

    def mark(self, value: Any, role: str = "") -> Any:
        """A JSON-able value with marks in the tokens that its texts spell.

        Args:
            role: who says it.
        """
        if isinstance(value, str):
            if not any(opening in value for opening in self._openings):  # nearly always, and much faster
                return value.replace(MARK, MARK + MARK)
            pattern = self._protected.get(role, self._protected_elsewhere)
            return pattern.sub(lambda match: match[1] + MARK, value.replace(MARK, MARK + MARK))
        if isinstance(value, Mapping):
            return {key: self.mark(part, role) for key, part in value.items()}
        if isinstance(value, Sequence):
            return [self.mark(part, role) for part in value]
        return value

    def unmarked(self, text: str) -> str:
        """A piece of a rendered text as it was said."""
        return _SINGLE_MARK.sub("", text).replace(MARK + MARK, MARK)

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text."""
        return [i for block in self._blocks(text) for i in self._block(block)]

    def _blocks(self, text: str) -> list[str]:
        if self._starts is None:
            return [text] if text else []
        cuts = [0, *(found.start() for found in self._starts.finditer(text)), len(text)]
        return [text[a:b] for a, b in pairwise(cuts) if a < b]

    def _block_ids(self, block: str) -> tuple[int, ...]:
        first, *rest = _SINGLE_MARK.split(block)
        ids = list(self._encode(first)["input_ids"]) if first else []
        for piece in rest:  # behind an added token, so that no tokenizer puts a space before it
            lead = len(self._encode(self._lead)["input_ids"]) if self._lead else 0
            ids += self._encode(self._lead + piece)["input_ids"][lead:]
        return tuple(ids)

    def _encode(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text.replace(MARK + MARK, MARK), add_special_tokens=False, **options)

    def check(self, text: str) -> None:
        """Tokenise whole texts from now on if blocks give other ids."""
        if self.ids(text) != list(self._encode(text)["input_ids"]):
            self._starts = None
            self._block.cache_clear()

    def inside(self, text: str, at: int) -> int:
        """`at`, or the start of the added token that it would cut."""
        for found in self._named.finditer(text):
            if found.start() < at < found.end():
                return found.start()
        return at

    def cut(self, head: str, between: str, end: str) -> int:
        """Where, `between` a reply and the next user's text, the reply is closed and the user's turn begins.

        It closes the reply as far as it stands at a dialogue's `end` too, and opens the user's turn as far as it
        stands at a dialogue's beginning (`head`). A first turn may open otherwise, as one that explains tools: then
        what is left between the two, unless it is space, belongs to the user's turn.
        """
        closed = self.inside(between, len(common(end, between)))
        opened = self.inside(between, len(between) - len(common_suffix(head, between, self.names)))
        otherwise = between[:closed].strip() and between[closed:opened].strip()
        return closed if otherwise else max(closed, opened)

    def named(self, text: str) -> list[int]:
        """Ids of the added tokens that stand in a text, in order."""
        return [int(self.tokenizer.convert_tokens_to_ids(found[0])) for found in self._named.finditer(text)]

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """From where to where in a rendered text each token goes; None: the tokenizer cannot say."""
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        spans, at = [], 0
        for block in self._blocks(text):
            for number, piece in enumerate(_SINGLE_MARK.split(block)):
                lead = self._lead if number else ""
                start = at - len(lead) + (number > 0)
                for a, b in self._encode(lead + piece, return_offsets_mapping=True)["offset_mapping"]:
                    if a >= len(lead):
                        spans.append((start + a, start + b))
                at += len(piece) + (number > 0)
        return spans

    def locate(self, rendered: str, reply: str, start: int, stop: int) -> tuple[int, int] | None:
        """Where `reply[start:stop]` stands in a rendered text that ends with this reply."""
        for lead in (0, len(reply) - len(reply.lstrip())):  # templates may trim
            at = rendered.rfind(self.mark(reply[lead:].rstrip() if lead else reply, "assistant"))
            if at >= 0:
                before, inside = (len(self.mark(reply[lead:end], "assistant")) for end in (start, stop))
                return at + before, at + inside
        return None


def spelled(tokenizer: Any, token_id: int) -> tuple[str, tuple[int, ...] | None]:
    """A token's text in the middle of others, and its bytes: None where they cannot be told.

    A token that holds a part of a character only has U+FFFD in its text.
    """
    once, twice = (str(tokenizer.decode([token_id] * n, clean_up_tokenization_spaces=False)) for n in (1, 2))
    if "\ufffd" not in once:  # a text alone may lack its first space
        text = twice[len(once) :]
        return text, tuple(text.encode())
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    byte = _BYTE.fullmatch(token)
    if byte:
        return once, (int(byte[1], 16),)
    return once, tuple(map(_BYTES.__getitem__, token)) if set(token) <= set(_BYTES) else None


def _longest_first(names: Iterable[str]) -> list[str]:
    """Without those that are only space: they open nothing."""
    return sorted({name for name in names if name.strip()}, key=lambda name: (-len(name), name))


def _any_of(names: Sequence[str], *, ahead: bool = False) -> re.Pattern[str]:
    """Any of the texts; `ahead`: only the first character of one, so that all that overlap are found."""
    spelled = "|".join(map(re.escape, names)) or r"(?!)"
    return re.compile(f"(?={spelled})(.)" if ahead else spelled, re.DOTALL)
