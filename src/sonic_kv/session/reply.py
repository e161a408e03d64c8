"""A reply as it was decoded, and as a message."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Written:
    """A reply as it was decoded.

    Attributes:
        token_ids: as they were sampled.
        reasoning: what the model wrote before the text.
        prompt_tokens: tokens that were fed for it, from the message that it answers on.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    reasoning: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message of the dialogue."""
        return reply_message(self.text, self.reasoning)


def reply_message(text: str, reasoning: str = "") -> dict[str, Any]:
    """A message of the assistant."""
    thought = {"reasoning_content": reasoning} if reasoning else {}
    return {"role": "assistant", "content": text, **thought}
