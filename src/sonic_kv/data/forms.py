"""The forms in which people keep dialogues, each turned into `{"messages": [{"role", "content"}, ...], ...}`.

    messages         OpenAI's: roles, texts or text parts, `developer`, tool calls and their results
    conversations    ShareGPT's: `from` and `value`, a `system` prompt beside it; `conversation` is another name for it
    history          MT-Bench-101's: `[{"user", "bot"}, ...]`
    followup         MathChat's `follow_up.jsonl`: a problem, its solution, and a conversation of "A:" and "B:"
    dial             GECOR's and CamRest's: `[{"usr": {"transcript", ...}, "sys": {"sent"}}, ...]`

A list of messages alone is a dialogue too.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

ROLES = {
    "developer": "system", "human": "user", "usr": "user", "gpt": "assistant", "bot": "assistant",
    "model": "assistant", "chatgpt": "assistant", "ai": "assistant", "function_call": "assistant",
    "function": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
_KEPT = ("tool_calls", "tool_call_id", "name")  # of a message, beside its role and text
_SPEAKER = re.compile(r"(?:^|\n)\s*(?:\*\*)?([AB]):(?:\*\*)?\s*")
_FINAL = re.compile(r"####\s*(\S[^\n]*)|\\(?:ANSWER|boxed)\{((?:[^{}]|\{[^{}]*\})*)\}")


def as_dialogue(row: Any) -> dict[str, Any]:
    """A row of a file as a dialogue; what else stands in the row stays.

    Raises:
        ValueError: it has none of the forms, or a message is malformed (it is named by its index).
    """
    if is_dialogue(row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise ValueError("needs a JSON object with a list 'messages'")
    for form, read in FORMS.items():
        if form in row:
            rest = {name: value for name, value in row.items() if name != form}
            return read(row[form], rest)
    raise ValueError(f"needs an object with a list 'messages' (or {', '.join([*FORMS][1:])})")


def is_dialogue(value: Any) -> bool:
    """True for a list that begins with a message."""
    return isinstance(value, list) and bool(value) and _is_message(value[0])


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _messages(found: Any, rest: dict[str, Any]) -> dict[str, Any]:
    if isinstance(found, dict):  # columns, as Arrow keeps a list of records
        found = [dict(zip(found, one, strict=True)) for one in zip(*found.values(), strict=True)]
    if not isinstance(found, list):
        raise ValueError("'messages' is not a list")
    messages = [_message(number, one) for number, one in enumerate(found)]
    system = (
        rest.pop("system", None) if any("from" in one for one in found if isinstance(one, dict)) else None
    )
    if system and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return {**rest, "messages": messages}


def _message(number: int, found: Any) -> dict[str, Any]:
    if not _is_message(found):
        raise ValueError(f"message {number} needs the keys 'role' and 'content'")
    role = found["role"] if "role" in found else found["from"]
    content = found["content"] if "content" in found else found.get("value")
    if isinstance(role, str):
        role = ROLES.get(role.lower(), role.lower())
    if isinstance(content, list):
        content = "".join(_parts(number, content))
    kept = {name: found[name] for name in _KEPT if found.get(name) is not None}
    if content is None and "tool_calls" in kept:
        content = ""  # a call alone
    if content is None:
        raise ValueError(f"message {number} needs the keys 'role' and 'content'")
    return {"role": role, "content": content, **kept}


def _parts(number: int, parts: list[Any]) -> Iterator[str]:
    """The texts of content parts."""
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"message {number} has a part of type {kind}: only text is supported")


def _history(found: Any, rest: dict[str, Any]) -> dict[str, Any]:
    pairs = ((turn.get("user"), turn.get("bot", turn.get("assistant"))) for turn in found)
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return _messages(messages, rest)


def _followup(found: Any, rest: dict[str, Any]) -> dict[str, Any]:
    texts = _SPEAKER.split(found)[1:]
    speakers, said = texts[::2], [text.strip() for text in texts[1::2]]
    if speakers != ["A", "B"] * (len(speakers) // 2) or not speakers:
        raise ValueError("'followup' must be turns of 'A:' and 'B:', one after the other")
    talk = [rest.pop("question"), rest.pop("answer"), *said]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)]
    return {**rest, "messages": messages, "meta": {"finals": [_final(text) for text in talk[1::2]]}}


def _final(solution: str) -> str | None:
    """What a solution says that the answer is: after `####`, or in `\\ANSWER{}` or `\\boxed{}`."""
    found = _FINAL.findall(solution)
    return "".join(found[-1]).strip() or None if found else None


def _dial(found: Any, rest: dict[str, Any]) -> dict[str, Any]:
    messages, notes = [], []
    for turn in found:
        user = turn["usr"]
        messages += [
            {"role": "user", "content": user["transcript"]},
            {"role": "assistant", "content": turn["sys"]["sent"]},
        ]
        notes.append({name: text for name, text in user.items() if name.startswith("transcript")})
    number = rest.pop("dialogue_id", None)
    name = {} if number is None else {"id": f"dialogue-{number}"}
    return {**name, "messages": messages, "meta": {"user_annotations": notes}}


FORMS = {
    "messages": _messages,
    "conversations": _messages,
    "conversation": _messages,
    "history": _history,
    "followup": _followup,
    "dial": _dial,
}
