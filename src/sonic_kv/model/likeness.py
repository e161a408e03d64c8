"""How alike two bases are: what they predict on a short text, and the divergence between the two, in nats a token.

An adapter learns from what its base does. It serves any base that does the same: in another precision, from a GGUF
file, after a light fine-tune. What a base does is kept with the adapter and compared when it is loaded.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from sonic_kv.errors import AdapterError

log = logging.getLogger(__name__)

TEXT = (
    "Ada moved to Oslo in March, and her brother Ben, who still lives in Lisbon, will visit her in the second week of "
    "June. They want to see the harbour, eat fish, and take the night train to Bergen. Remind her to book the tickets "
    "before Friday.\n\nQ: If 3 apples cost 2 dollars, what do 12 apples cost?\nA: 12 / 3 = 4, so 4 * 2 = 8 dollars.\n\n"
    "def mean(values):\n    return sum(values) / len(values)\n"
)
BEST = 64  # predicted tokens that are kept at each place; the others count as one
SAME, FAR = 0.1, 1.0  # nats: below the first nothing is said, above the second the base is refused
_NAMES = ("ids", "tokens", "log_probs")


@torch.no_grad()
def behaviour(base: Any, tokenizer: Any) -> dict[str, Tensor]:
    """What a base predicts on the built-in text.

    Returns:
        ids (T,), and at each place the `BEST` tokens and their log-probabilities, (T, BEST)
    """
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    best = _log_probs(base, ids).topk(min(BEST, base.config.get_text_config().vocab_size))
    return {"ids": ids.int(), "tokens": best.indices.int(), "log_probs": best.values.half()}


def _log_probs(base: Any, ids: Tensor) -> Tensor:
    logits: Tensor = base(input_ids=ids[None].long().to(base.device), use_cache=False).logits[0]
    return logits.float().log_softmax(-1).cpu()


@torch.no_grad()
def divergence(base: Any, known: dict[str, Tensor]) -> float:
    """KL divergence of a base from what another one predicts, in nats a token; inf: another vocabulary."""
    tokens, expected = known["tokens"].long(), known["log_probs"].float()
    if int(max(tokens.max(), known["ids"].max())) >= base.config.get_text_config().vocab_size:
        return torch.inf
    found = _log_probs(base, known["ids"]).gather(-1, tokens)
    rest, rest_found = (torch.log1p(-part.exp().sum(-1).clamp(max=1 - 1e-6)) for part in (expected, found))
    kl = (expected.exp() * (expected - found)).sum(-1) + rest.exp() * (rest - rest_found)
    return float(kl.mean())


def packed(known: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for an adapter's file."""
    return {f"base.{name}": known[name] for name in _NAMES}


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What `packed` put among an adapter's tensors, taken out; None: a file of an earlier version."""
    found = {name: tensors.pop(f"base.{name}") for name in _NAMES if f"base.{name}" in tensors}
    return found if len(found) == len(_NAMES) else None


def check_likeness(base: Any, known: dict[str, Tensor], what: str, far: float = FAR) -> None:
    """Warn of a base that does other things than the one that `known` is of, and refuse one that is far from it.

    Raises:
        AdapterError: it is far.
    """
    kl = divergence(base, known)
    if not kl <= far:
        raise AdapterError(
            f"{what} was made for another model: their predictions differ by {kl:.2f} nats a token (at most {far:g}); "
            "load it with the model it was made for"
        )
    if kl > SAME:
        log.warning(
            "%s was made for a model whose predictions differ by %.2f nats a token: it may choose less well",
            what,
            kl,
        )
