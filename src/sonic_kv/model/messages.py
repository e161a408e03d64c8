"""Messages of a dialogue, checked in one place for every entrance: sessions, files, the server."""

import json
from collections.abc import Mapping
from typing import Any

from sonic_kv.errors import MessageError

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")
# What a chat template may read of a message; other keys are bookkeeping of whoever wrote it.
KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
DEEPEST = 100  # levels of objects and lists in one another


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages with the keys that matter, if they are a dialogue.

    `developer` is another name of the system's role. Whether the roles may come in this order is for the chat
    template to say.

    Raises:
        MessageError: none at all, an unknown role, a content that is no text, half a character, or what is no JSON.
    """
    if not isinstance(messages, (list, tuple)):
        raise MessageError(f"a dialogue is a list of messages, not {type(messages).__name__}")
    if not messages:
        raise MessageError("the dialogue is empty: give at least one message")
    return [_checked(number, message) for number, message in enumerate(messages)]


def _checked(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise MessageError(f"message {number} needs the keys 'role' and 'content'")
    found = {key: message[key] for key in KEYS if message.get(key) is not None}
    role = "system" if found.get("role") == "developer" else message["role"]
    if role not in ROLES:
        raise MessageError(f"message {number} has the unknown role {role!r}: use one of {', '.join(ROLES)}")
    content = message["content"]
    if content is None and found.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise MessageError(f"message {number} has {type(content).__name__} content: only text is supported")
    if not found.get("tool_calls"):
        found.pop("tool_calls", None)
    found = {**found, "role": role, "content": content}
    fault = fault_of(found)
    if fault:
        raise MessageError(f"message {number} {fault}")
    return found


def ends_exchange(message: Message) -> bool:
    """Whether a message completes an exchange: a reply does, unless it calls a tool, whose answer is to come."""
    return message["role"] == "assistant" and not message.get("tool_calls")


def fault_of(value: Any) -> str | None:
    """Why a value cannot be written into a file or an answer as JSON; None: it can."""
    if _deeper(value, DEEPEST):
        return f"is nested too deeply: {DEEPEST} levels are the most"
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate)"
    except (TypeError, ValueError) as error:
        return f"is no JSON: {error}"
    return None


def _deeper(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return levels < 0 or any(_deeper(part, levels - 1) for part in parts)
