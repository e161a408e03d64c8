"""How likely the tokens of a reply were, as the model itself has it: before any setting of the sampling."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sonic_kv.model.tokens import spelled


@dataclass(frozen=True)
class Logprob:
    """A token and the logarithm of its probability, in nats.

    Attributes:
        text: of the token; a character in several tokens shows as U+FFFD in each.
        bytes: of the token; None: they cannot be told.
        top: the most likely tokens in its place, the best first.
    """

    text: str
    logprob: float
    bytes: tuple[int, ...] | None
    top: tuple["Logprob", ...] = ()


def logprob_of(tokenizer: Any, logits: Tensor, token_id: int, top: int) -> Logprob:
    """A token that was chosen, and the `top` best in its place. (V,)"""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(top, len(logprobs)))
    others = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    found = tuple(_told(tokenizer, other, value) for other, value in others)
    return _told(tokenizer, token_id, float(logprobs[token_id]), found)


def _told(tokenizer: Any, token_id: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
    text, raw = spelled(tokenizer, token_id)
    return Logprob(text, logprob, raw, top)
