"""What a session is a function of: its steps, and the keys under which it is found.

A dialogue is a list of steps: messages, budgets from then on, and what the chat template is told. The state after
each step has a key, a hash over everything that it depends on, so that a session is found by what was said and never
by accident.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sonic_kv.compress.options import Budget
from sonic_kv.errors import BudgetError, ContextLengthError, MessageError
from sonic_kv.model.chat_format import ChatFormat
from sonic_kv.model.messages import Message, check_messages
from sonic_kv.model.model import SonicModel

PIECE = 16384  # characters that are tokenised at once to count tokens


@dataclass(frozen=True)
class Told:
    """What the chat template is told beside the messages; a step of its own behind the first budget."""

    chat_template_kwargs: dict[str, Any]


Step = dict[str, Any] | Budget | Told


def digest(*parts: Any) -> str:
    """A hash of JSON-able parts, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def owner_of(namespace: str) -> str:
    """What stands before the labels and keys of all that belongs to a namespace."""
    return digest("owner", namespace)[:32]


def label_of(namespace: str, name: str) -> str:
    """The key of a session's name: it stays when model or options change."""
    return f"{owner_of(namespace)}-{digest('name', namespace, name)}"


def chain(namespace: str, scope: str, steps: Sequence[Step]) -> list[str]:
    """The key of the state after each step; `scope` is on what model, and with which options."""
    owner, scope, keys = owner_of(namespace), digest(scope, namespace), []
    for step in steps:
        scope = digest(scope, as_json(step))
        keys.append(f"{owner}-{scope}")
    return keys


def as_json(step: Step) -> Any:
    """A step as it is written into files."""
    if isinstance(step, Budget):
        return step.compression_ratio if step.max_damage is None else f"{step.max_damage!r} nats"
    if isinstance(step, Told):
        return step.chat_template_kwargs
    more = {key: value for key, value in step.items() if key not in ("role", "content")}
    return [step["role"], step["content"], *([more] if more else [])]


def from_json(written: Any) -> Step:
    """The step that `as_json` wrote."""
    if isinstance(written, list):
        role, content, *more = written
        return {**(more[0] if more else {}), "role": str(role), "content": str(content)}
    if isinstance(written, str):
        return Budget(max_damage=float(written.removesuffix(" nats")))
    return Told(written) if isinstance(written, dict) else Budget(compression_ratio=float(written))


def check_steps(steps: list[Step]) -> list[Step]:
    """`steps`, if they can be a session's.

    Raises:
        SonicError: they cannot.
    """
    if not steps or not isinstance(steps[0], Budget):
        raise MessageError("a session begins with a budget")
    if any(isinstance(step, Told) for step in [*steps[:1], *steps[2:]]):
        raise MessageError("what the chat template is told stands behind the first budget")
    check_messages(messages_of(steps))
    return steps


def messages_of(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The messages among the steps."""
    return [step for step in steps if isinstance(step, dict)]


def budget_of(steps: Sequence[Step]) -> Budget | None:
    """The newest budget."""
    return next((step for step in reversed(steps) if isinstance(step, Budget)), None)


def told(steps: Sequence[Step]) -> dict[str, Any]:
    """What the chat template is told."""
    return next((step.chat_template_kwargs for step in steps if isinstance(step, Told)), {})


def bounded(budget: Budget, least: float) -> Budget:
    """A budget that removes the share `least` at least.

    Raises:
        BudgetError: that cannot be told of one in nats.
    """
    if budget.max_damage is None:
        return Budget(compression_ratio=max(budget.compression_ratio or 0.0, least))
    if least:
        raise BudgetError(f"max_damage: this server removes {least:g} at least: give a compression_ratio")
    return budget


@dataclass(frozen=True)
class Summary:
    """A session in a list: its name, when it was used last (in seconds, if it is stored), and what it is about."""

    name: str
    messages: int
    title: str
    used: float | None = None


def summary(name: str, steps: Sequence[Step], used: float | None = None) -> Summary:
    """A session in short; its title is the beginning of what the user said first."""
    messages = messages_of(steps)
    title = next((message["content"] for message in messages if message["role"] == "user"), "")
    return Summary(name, len(messages), " ".join(title.split())[:80], used)


def continued(
    known: Sequence[Step],
    messages: Sequence[Message],
    budget: Budget | None,
    default: Budget,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[Step]:
    """The steps of a dialogue with these messages, budgets as in the `known` one while its messages are the same.

    Args:
        budget: the compression that is asked for from the first new message on; None: as before.
        default: compression of a dialogue that has none.
        chat_template_kwargs: what the template is told; with anything else, it is another dialogue from its start.
    """
    steps: list[Step] = []
    left = [dict(message) for message in messages]
    for step in known:
        if isinstance(step, Budget):
            steps.append(step)
        elif isinstance(step, Told):
            continue
        elif left and step == left[0]:
            steps.append(left.pop(0))
        else:
            break
    if not messages_of(steps):
        steps = []
    before = budget_of(steps)
    wanted = budget or before or default
    if wanted != before:
        steps.append(wanted)
    if chat_template_kwargs:
        steps.insert(1, Told(chat_template_kwargs))
    return steps + left


def check_length(model: SonicModel, messages: Sequence[Message], most: int) -> None:
    """Raise `ContextLengthError` if a dialogue has more than `most` tokens. Reads no further than needed."""
    texts = [message["content"] for message in messages]
    left = most
    if sum(len(text.encode()) for text in texts) <= most:  # no token is less than a byte
        return
    for text in texts:
        for start in range(0, len(text), PIECE):
            left -= len(model.tokenizer(text[start : start + PIECE], add_special_tokens=False)["input_ids"])
            if left < 0:
                raise ContextLengthError(
                    f"the dialogue has more than {most} tokens, which is what this server takes: shorten it"
                )


def checked(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], str]:
    """The messages to be answered, and how the reply begins: a last message of the assistant's is to be continued.

    Raises:
        MessageError: they are no dialogue.
    """
    found = check_messages(messages)
    begun = found.pop()["content"] if found[-1]["role"] == "assistant" else ""
    if not found:
        raise MessageError("there is nothing to answer: give a message of the user's")
    return found, begun


def without_idle_reasoning(form: ChatFormat, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without reasoning that the chat template drops: with and without it, the dialogue is the same."""

    def bare(message: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in message.items() if key != "reasoning_content"}

    found = list(messages)
    thinking = [number for number, message in enumerate(found) if "reasoning_content" in message]
    if not thinking:
        return found
    whole = form.render(found, generation=True)
    if form.render([bare(message) for message in found], generation=True) == whole:
        return [bare(message) for message in found]
    for number in thinking:
        without = [*found[:number], bare(found[number]), *found[number + 1 :]]
        found = without if form.render(without, generation=True) == whole else found
    return found
