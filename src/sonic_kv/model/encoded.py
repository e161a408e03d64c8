"""Dialogues as token ids, with their exchanges and segments."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """A dialogue as token ids: the raw prefix, then exchanges that end at `exchange_ends`."""

    token_ids: list[int]
    prefix_length: int
    exchange_ends: list[int]
    assistant: list[bool]  # per token: written by the assistant (its closing token included)


def segment_ends(encoded: Encoded, min_segment_tokens: int, max_segment_tokens: int) -> list[int]:
    """Transcript positions at which a session closes a segment, in order.

    A segment ends with an exchange, as soon as it has `min_segment_tokens`; one that reaches
    `max_segment_tokens` ends there, if more tokens come.
    """
    length = len(encoded.token_ids)
    ends: list[int] = []
    start = encoded.prefix_length
    for end in [*encoded.exchange_ends, None]:
        while (length if end is None else end) - start > max_segment_tokens:
            start += max_segment_tokens
            ends.append(start)
        if end is not None and end - start >= min_segment_tokens:
            ends.append(end)
            start = end
    return ends
