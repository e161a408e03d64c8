"""transformers' processors of logits, in the order in which `generate` applies them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sonic_kv.errors import ConfigError

MOST = 1e6  # numbers beyond it, or nearer to zero, do the same, but overflow
Process = Callable[[Tensor, Tensor], Tensor]  # token ids (B, T), scores (B, V) → scores (B, V)


def made_with(base: PreTrainedModel) -> dict[str, Any]:
    """What the makers of a model say about generation, without what they leave as it is."""
    config = base.generation_config
    found = {} if config is None else config.to_diff_dict()
    return {name: value for name, value in found.items() if value is not None}


def processors(
    base: PreTrainedModel, repetition_penalty: float, logit_bias: Mapping[int, float] | None = None
) -> Process | None:
    """What changes logits whether tokens are sampled or not; None: nothing does.

    Raises:
        ConfigError: the model has no such token.
    """
    made, found = made_with(base), LogitsProcessorList()
    if logit_bias:
        tokens: int = base.config.get_text_config().vocab_size
        strange = [token for token in logit_bias if not 0 <= token < tokens]
        if strange:
            raise ConfigError(f"logit_bias: the model's tokens are 0 to {tokens - 1}, and not {strange[0]}")
        biases = {(token,): min(max(float(bias), -MOST), MOST) for token, bias in logit_bias.items()}
        found.append(SequenceBiasLogitsProcessor(biases))
    if repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(_factor(repetition_penalty)))
    if made.get("no_repeat_ngram_size"):
        found.append(NoRepeatNGramLogitsProcessor(made["no_repeat_ngram_size"]))
    if made.get("suppress_tokens"):
        found.append(SuppressTokensLogitsProcessor(made["suppress_tokens"], base.device))
    return found or None


def _factor(value: float) -> float:
    return min(max(float(value), 1.0 / MOST), MOST)


def warpers(temperature: float, top_k: int, top_p: float, min_p: float) -> Process:
    """What shapes the distribution that is sampled from. Zero and one leave it as it is."""
    found: list[Process] = [TemperatureLogitsWarper(_factor(temperature))]
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p != 1.0:
        found.append(TopPLogitsWarper(float(top_p)))
    if min_p:
        found.append(MinPLogitsWarper(float(min_p)))
    process: Process = LogitsProcessorList(found)
    return process
