"""What scores are worth in nats: dialogues under several budgets, what was dropped of them, and what that cost."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ConfigError, DataError
from sonic_kv.model.encoded import Encoded, segment_ends
from sonic_kv.model.model import SonicModel
from sonic_kv.model.nats import DamageScale
from sonic_kv.training.losses import by_rows, kl
from sonic_kv.training.objectives import predicting
from sonic_kv.training.teacher import run_teacher

RATIOS = (0.5, 0.8, 0.95)
LEAST_POWER = 0.1  # more dropped is never less damage
SUMS = DamageScale(factor=1.0, power=1.0)  # its nats are the sums themselves


@dataclass(frozen=True)
class Trial:
    """A dialogue under a budget, over the replies that came after a closing.

    Attributes:
        dropped: what dropped entries count, Σ exp(2 s); mean over the replies' tokens.
        divergence: measured KL divergence from full context, mean over the same, in nats.
    """

    dropped: float
    divergence: float


@torch.no_grad()
def try_out(
    model: SonicModel, encoded: Encoded, ratios: Sequence[float] = RATIOS, config: SessionConfig | None = None
) -> list[Trial]:
    """A dialogue under several compression ratios, read turn by turn as a session does; what it closes, segment by
    segment, is compared with full context on the tokens of later replies.

    Args:
        model: with the adapter.
    """
    config, length = config or SessionConfig(), len(encoded.token_ids)
    ends = segment_ends(encoded, config.min_segment_tokens, config.max_segment_tokens)
    ends = [end for end in ends if end < length - 1]
    if not ends:
        return []
    ids = torch.tensor(encoded.token_ids, device=model.device)
    rows = predicting(encoded, ends[0]).to(model.device)
    (teacher,) = run_teacher(model, [ids])
    full = teacher.logits[rows].float().log_softmax(-1)
    compressor = Compressor(model, config)
    compressor.scale = SUMS
    return [_try(compressor, encoded, ends, rows, full, Budget(compression_ratio=ratio)) for ratio in ratios]


def _try(
    compressor: Compressor, encoded: Encoded, ends: Sequence[int], rows: Tensor, full: Tensor, budget: Budget
) -> Trial:
    """
    Args:
        ends: where segments close.
        rows: positions whose predictions count. (R,)
        full: log-probabilities there, with full context. (R, V)
    """
    model, token_ids = compressor.model, encoded.token_ids
    cache = model.new_cache()
    if encoded.prefix_length:
        model.feed(cache, token_ids[: encoded.prefix_length])
    cache.mark_prefix()
    dropped, total, divergences = 0.0, 0.0, 0.0
    for start, end in zip([encoded.prefix_length, *ends], [*ends, len(token_ids)], strict=True):
        logits = model.feed(cache, token_ids[start:end], all_logits=True)
        here = (rows >= start) & (rows < end)
        divergences += float(by_rows(_divergence, full[here], logits[rows[here] - start]).sum())
        total += dropped * int(here.sum())
        if end < len(token_ids):
            compressor.close(cache, token_ids[:end], budget)
            dropped = compressor.predicted_damage(cache) or 0.0
    return Trial(total / len(rows), divergences / len(rows))


def _divergence(full: Tensor, logits: Tensor) -> Tensor:
    return kl(full, logits.float().log_softmax(-1))


def fit(trials: Iterable[Trial]) -> DamageScale:
    """The scale that explains most of the divergences' logarithms; then a factor that makes it true in the mean.

    Raises:
        DataError: nothing has been dropped.
    """
    found = [trial for trial in trials if trial.dropped > 0.0 and trial.divergence > 0.0]
    if len({trial.dropped for trial in found}) < 2:
        raise DataError("no dialogue is long enough to measure what dropped entries cost: give longer ones")
    x = torch.tensor([math.log(trial.dropped) for trial in found], dtype=torch.float64)
    y = torch.tensor([math.log(trial.divergence) for trial in found], dtype=torch.float64)
    power = max(float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()), LEAST_POWER)
    return DamageScale(float((y - power * x).exp().mean()), power)


def measured(model: SonicModel, dialogues: Iterable[Encoded]) -> DamageScale:
    """The scale of the model's adapter.

    Args:
        dialogues: best those that it was not trained on.

    Raises:
        ConfigError: its tokens are learned.
        DataError: no dialogue is long enough.
    """
    assert model.adapter is not None
    if model.adapter.config.form == "learned":
        raise ConfigError(
            "learned Nexus tokens have no damage of their own: this adapter gets no scale in nats"
        )
    return fit(trial for encoded in dialogues for trial in try_out(model, encoded))
