"""How a chat template writes the calls of tools: learned from what it makes of one, and read back from replies."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sonic_kv.errors import UnsupportedModelError
from sonic_kv.model.common import same
from sonic_kv.model.grammar import json_rule
from sonic_kv.model.messages import Message, fault_of

ARGUMENTS = ("arguments", "parameters")  # what templates call them
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAME = "probename"
_ASKED: Message = {"role": "user", "content": "probeone"}
_ARGUMENTS = {"probekey": "probetwo"}
_FUNCTION = {"name": _NAME, "arguments": _ARGUMENTS}
_CALLED: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "probe0001", "type": "function", "function": _FUNCTION}],
}
PROBE = {
    "type": "function",
    "function": {"name": _NAME, "description": "probe", "parameters": {"type": "object"}},
}


@dataclass(frozen=True)
class Call:
    """A call of a tool, or its beginning; without a name, what goes on the last one's arguments.

    Attributes:
        arguments: JSON as the model wrote it.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class CallForm:
    """How a template writes a call: an object of name and arguments, and what stands around it.

    Attributes:
        opening: what stands before the object; empty: nothing does, and the call is the whole reply.
        closing: what stands behind it.
        head: from the opening to the arguments, with `probename` in the place of the name.
        tail: from the arguments to the closing.
        tags: the added tokens in all of it.
    """

    opening: str
    closing: str
    head: str
    tail: str
    tags: tuple[tuple[str, int], ...]

    def rule(self, name: str, parameters: Mapping[str, Any]) -> str:
        """A call with arguments that are valid for a schema, as a part of a grammar."""
        head = self.head.replace(_NAME, json.dumps(name)[1:-1])
        return f"{self._literal(head)} {json_rule(parameters)} {self._literal(self.tail)}".strip()

    def _literal(self, text: str) -> str:
        """A text as a part of a grammar, added tokens by their ids."""
        for tag, token_id in self.tags:
            before, found, behind = text.partition(tag)
            if found:
                return f"{self._literal(before)} <[{token_id}]> {self._literal(behind)}".strip()
        return json.dumps(text, ensure_ascii=False) if text else ""


def call_form(render: Callable[..., str], close: str, tokens: Mapping[str, int]) -> CallForm:
    """How a template writes calls.

    Args:
        render: the template.
        close: what closes a reply.
        tokens: the tokenizer's added tokens.

    Raises:
        UnsupportedModelError: it cannot write them, or not as an object of name and arguments.
    """
    before, whole = render([_ASKED], generation=True), render([_ASKED, _CALLED])
    text = whole[same(before, whole) :]
    text = text[: text.find(close.strip())] if close.strip() and close.strip() in text else text
    for start in [i for i, char in enumerate(text) if char == "{"]:
        try:
            found, length = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            continue
        if _call(found) == Call(_NAME, json.dumps(_ARGUMENTS)):
            break
    else:
        raise UnsupportedModelError(
            "tools: the chat template writes calls in a form that this server cannot read"
        )
    opening, closing = text[:start], text[start + length :]
    inner = text.index("{", text.index(_NAME))
    _, size = json.JSONDecoder().raw_decode(text[inner:])
    head, tail = text[:inner], text[inner + size :]
    tags = tuple((tag, number) for tag, number in tokens.items() if tag in opening + closing)
    return CallForm(opening.strip(), closing.strip(), head, tail, tags)


def _call(value: Any) -> Call | None:
    """The call that a JSON value is."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments: Any = next((value[key] for key in ARGUMENTS if key in value), {})
    if not isinstance(arguments, dict) or fault_of(value):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def arguments_of(written: str) -> dict[str, Any] | str:
    """Arguments as chat templates take them: an object, or what is no JSON of one as it was written."""
    try:
        read = json.loads(written)
    except (ValueError, RecursionError):
        return written
    return read if isinstance(read, dict) and not fault_of(read) else written


@dataclass
class _Brackets:
    """How many brackets are open in JSON that comes in pieces."""

    open: int
    _quoted: bool = False
    _escaped: bool = False

    def until(self, text: str, least: int) -> int | None:
        """Where in the text no more than `least` are open, or a tag begins; None: nowhere in it."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = char == "\\", char != '"'
            elif char == "<":
                return at
            else:
                self._quoted = char == '"'
                self.open += (char in "{[") - (char in "}]")
                if char in "}]" and self.open <= least:
                    return at + 1
        return None


class CallReader:
    """Divides a reply into text and calls, as it comes. What is no call after all is text.

    A reply that calls a known tool without what the template puts around it is a call, too: small models forget it.
    One that has named a known tool and begun its arguments is a call, whatever follows; it is told in pieces.

    Args:
        names: the tools that there are.
        most: calls that a reply may have; what comes behind the last one is left out.
    """

    def __init__(self, form: CallForm, names: Collection[str], most: int | None = None) -> None:
        self._form, self._names, self._left = form, names, most
        self._held, self._inside, self._plain, self._found = "", False, False, False
        self._around = form.opening, form.closing  # of the call that is being read
        self._brackets: _Brackets | None = None  # of the call that is being told
        self._least = 0  # of them that are open behind what is being read of it
        self._known = ""  # of what is held
        self._begun: list[str | Call] = []  # of a call that how the reply begins leaves open

    def begin(self, text: str) -> None:
        """Read how the reply begins, which is not told as text again."""
        parts = self.add(text)
        names = [number for number, part in enumerate(parts) if isinstance(part, Call) and part.name]
        if self._brackets is not None:
            self._begun = parts[names[-1] :]
        else:
            self._known = (self._around[0] if self._inside else "") + self._held

    def add(self, text: str, *, final: bool = False) -> list[str | Call]:
        """Texts and calls that have become certain; all that is left if this is the `final` text."""
        self._held += text
        found, self._begun = self._begun, []
        while self._held and self._left != 0:
            part = self._read(final)
            if part is None:
                break
            if part and self._known:
                part = part if isinstance(part, Call) else part[same(self._known, part) :]
                self._known = ""
            found += [part] if part else []
        return found

    def _read(self, final: bool) -> str | Call | None:
        """The next part; None: more is needed to tell."""
        if self._brackets is not None:
            return self._go_on(self._brackets, final)
        return self._read_call(final) if self._inside else self._read_text(final)

    def _go_on(self, brackets: _Brackets, final: bool) -> str | Call | None:
        """What goes on a call that is being told: its arguments, the end of its object, what closes it."""
        if self._least >= 0:
            end = brackets.until(self._held, self._least)
            part, self._held = self._held[:end], "" if end is None else self._held[end:]
            arguments = part if self._least else ""
            self._least -= end is not None
            return Call("", arguments) if arguments else ""
        closing, rest = self._around[1], self._held.lstrip()
        if closing and not final and closing != rest and closing.startswith(rest):
            return None
        self._end(rest.removeprefix(closing) if closing else self._held)
        return ""

    def _end(self, held: str) -> None:
        """Leave a call; `held` is behind it."""
        self._held, self._inside, self._found, self._brackets = held, False, True, None
        self._left = None if self._left is None else self._left - 1

    def _read_text(self, final: bool) -> str | None:
        """Text before a call; None: more is needed to tell."""
        tag = self._form.opening
        begun = self._held.lstrip(" ;\n" if self._found else None)
        bare = not self._plain and not (self._found and self._around[0])  # no text and no tag was before it
        if not tag or (bare and (begun or "{").startswith("{")):
            self._around = "", ""
            return self._read_plain(final)
        self._plain = True  # from here on only the tag begins a call
        before, found, behind = self._held.partition(tag)
        if found:
            self._held, self._inside, self._around = behind, True, (tag, self._form.closing)
            return before.strip("\n") if self._found else before.rstrip("\n")
        sizes = range(0 if final else min(len(tag) - 1, len(before)), 0, -1)
        keep = next((n for n in sizes if tag.startswith(before[-n:])), 0)
        certain = before[: len(before) - keep]
        certain = certain if final else certain.rstrip("\n")
        self._held = before[len(certain) :]
        if final and self._found and not certain.strip():
            return ""
        return certain or None

    def _read_plain(self, final: bool) -> str | None:
        """Text where nothing announces a call: it begins with one, or has none."""
        begun = self._held.lstrip(" ;\n" if self._found else None)
        if begun.startswith("{") and not self._plain:
            self._held, self._inside = begun, True
            return ""
        if not begun and not final:
            return None
        text, self._held, self._plain = self._held, "", True
        return "" if self._found and not text.strip() else text

    def _read_call(self, final: bool) -> str | Call | None:
        (opening, closing), begun = self._around, self._held.lstrip()
        head = _HEAD.match(begun)
        if head is not None and head[1] in self._names:
            self._held, self._found = begun[head.end() :], True
            self._brackets, self._least = _Brackets(1), 1
            return Call(head[1], "")
        if not opening and self._form.opening and self._form.opening in begun:  # it was text before a call
            self._inside, self._plain = False, True
            return ""
        at = begun.find(closing) if closing else -1
        if not (final or at >= 0 or (not closing and begun.rstrip().endswith("}"))):
            return None
        try:
            value, length = json.JSONDecoder().raw_decode(begun)
        except (ValueError, RecursionError):
            value, length = None, at + len(closing) if at >= 0 else len(begun)
            if not (final or at >= 0):
                return None
        call = _call(value)
        if call is not None and (opening or call.name in self._names):
            rest = begun[length:]
            self._end(rest.lstrip().removeprefix(closing) if closing else rest)
            return call
        end = at + len(closing) if at >= 0 else len(begun)
        space = self._held[: len(self._held) - len(begun)]
        self._held, self._inside, self._plain = begun[end:], False, True
        return opening + space + begun[:end]


def tool_rules(form: CallForm, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """A call of each tool, as parts of a grammar."""
    functions = [tool["function"] for tool in tools]
    return [form.rule(one["name"], one.get("parameters") or {"type": "object"}) for one in functions]
