"""Messages of a dialogue, checked in one place for every entrance: sessions, files, the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from sonic_kv.errors import MessageError

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")
# What a chat template may read of a message; other keys are bookkeeping of whoever wrote it.
KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages with the keys that matter, if they are a dialogue.

    `developer` is another name of the system's role. Whether the roles may come in this order is for the chat
    template to say.

    Raises:
        MessageError: none at all, an unknown role, a content that is no text, or half a character.
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
    for text in texts(found):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MessageError(f"message {number} holds half a character (a lone surrogate)") from error
    return found


def texts(value: Any) -> list[str]:
    """All texts in a JSON-able value, keys of objects included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in texts(part)]
    if isinstance(value, Sequence):
        return [text for part in value for text in texts(part)]
    return []
