"""Which parts of what was said a dialogue's cache still holds."""

from dataclasses import dataclass

from sonic_kv.errors import UnsupportedModelError
from sonic_kv.session.dialogue import Dialogue


@dataclass(frozen=True)
class KeptMessage:
    """A message in pieces of one token: their texts, and which share of all layers' KV heads still holds each."""

    role: str
    pieces: list[tuple[str, float]]


def kept_of(dialogue: Dialogue) -> list[KeptMessage]:
    """What is held of every message.

    Raises:
        UnsupportedModelError: the tokenizer or the chat template does not tell which tokens a message has.
    """
    form, messages = dialogue.model.format, dialogue.messages
    spelled = form.spelled(messages) if form.closed(messages) == dialogue.token_ids else None
    if spelled is None:
        raise UnsupportedModelError("this model's tokenizer does not tell which tokens a message has")
    shares = dialogue.cache.shares().tolist()
    return [
        KeptMessage(message["role"], [(text, shares[number]) for number, text in pieces])
        for message, pieces in zip(messages, spelled, strict=True)
    ]
