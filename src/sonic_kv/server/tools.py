"""The tools of one chat request: how the model is told of them, and what becomes of its calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sonic_kv.model.calls import CallForm, CallReader, arguments_of
from sonic_kv.session.reply import reply_message


@dataclass(frozen=True)
class Tools:
    """What may be called in a reply.

    Attributes:
        form: how the model's template writes calls.
        names: of the tools.
        most: calls that a reply may have; None: any number.
        mark: begins the ids of its calls.
    """

    form: CallForm
    names: frozenset[str]
    most: int | None
    mark: str

    def reader(self, begun: str = "") -> CallReader:
        """What divides a reply into text and calls; it knows how the reply begins."""
        reader = CallReader(self.form, self.names, self.most)
        reader.begin(begun)
        return reader

    def call(self, number: int, name: str, arguments: str = "") -> dict[str, Any]:
        """A call as a message has it, its arguments in JSON."""
        function = {"name": name, "arguments": arguments}
        return {"id": f"call_{self.mark}{number}", "type": "function", "function": function}

    def read(self, text: str, begun: str = "") -> tuple[str, list[dict[str, Any]]]:
        """The text and the calls of a reply."""
        parts = self.reader(begun).add(text, final=True)
        said, calls = "", list[dict[str, Any]]()
        for part in parts:
            if isinstance(part, str):
                said += part
            elif part.name:
                calls.append(self.call(len(calls), part.name, part.arguments))
            else:
                calls[-1]["function"]["arguments"] += part.arguments
        return said, calls


def message_of(tools: Tools | None, text: str) -> dict[str, Any]:
    """A reply as the message that its client sends back, as chat templates take it."""
    if tools is None:
        return reply_message(text)
    said, calls = tools.read(text)
    found = [{**call, "function": _plain(call["function"])} for call in calls]
    return {**reply_message(said), "tool_calls": found} if found else reply_message(text)


def _plain(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": arguments_of(function["arguments"])}
