"""Choosing tokens as the model's makers meant it: `generation_config`, and what an option says otherwise."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sonic_kv.errors import NumericalError
from sonic_kv.session.options import SamplingConfig

NAN_LOGITS = "the model produced NaN logits: its weights are damaged or its dtype overflows"
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def settled(sampling: SamplingConfig, base: PreTrainedModel) -> SamplingConfig:
    """The options with a number in the place of every None: the makers', or none at all.

    A model whose makers do not ask for sampling is greedy unless a temperature is given.
    """
    made = _made(base)
    found: dict[str, Any] = {}
    for name, nothing in PLAIN.items():
        value = getattr(sampling, name)
        found[name] = made.get(name, nothing) if value is None else value
    if sampling.temperature is None and not made.get("do_sample"):
        found["temperature"] = 0.0
    return replace(sampling, **found)


def _made(base: PreTrainedModel) -> dict[str, Any]:
    config = base.generation_config
    found = {} if config is None else config.to_diff_dict()
    return {name: value for name, value in found.items() if value is not None}


class Sampler:
    """Chooses the next tokens of one dialogue, with transformers' own processors in its own order.

    Args:
        sampling: None in it: as the makers of `base` say.
        said: the transcript so far, for penalties on repetition.
    """

    def __init__(self, base: PreTrainedModel, sampling: SamplingConfig, said: Sequence[int] = ()) -> None:
        options, made = settled(sampling, base), _made(base)
        assert options.temperature is not None
        self._processors, self._warpers = LogitsProcessorList(), LogitsProcessorList()
        if options.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        if made.get("no_repeat_ngram_size"):
            self._processors.append(NoRepeatNGramLogitsProcessor(made["no_repeat_ngram_size"]))
        if made.get("suppress_tokens"):
            self._processors.append(SuppressTokensLogitsProcessor(made["suppress_tokens"], base.device))
        self.greedy = options.temperature == 0.0
        if not self.greedy:
            self._warpers.append(TemperatureLogitsWarper(float(options.temperature)))
            if options.top_k:
                self._warpers.append(TopKLogitsWarper(options.top_k))
            if options.top_p != 1.0:
                self._warpers.append(TopPLogitsWarper(float(options.top_p or 1.0)))
            if options.min_p:
                self._warpers.append(MinPLogitsWarper(options.min_p))
        self.plain = self.greedy and not self._processors
        self._ids = list(said)
        self._generator = torch.Generator(base.device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """The next token. (V,) → its id; it counts as said.

        Raises:
            NumericalError: the logits are not finite.
        """
        ids = torch.tensor([self._ids], device=logits.device)
        check_logits(logits)
        scores = self._processors(ids, logits[None].float()) if self._processors else logits[None].float()
        if self.greedy:
            token = int(scores.argmax(-1))
        else:  # the best is at 0, so that no temperature, however low, overflows
            scores = self._warpers(ids, scores - scores.max(-1, keepdim=True).values)
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        self._ids.append(token)
        return token


def check_logits(logits: Tensor) -> None:
    """Raise `NumericalError` unless the best of each row is a number. (…, V)"""
    if not bool(logits.max(-1).values.isfinite().all()):  # NaN if any is
        raise NumericalError(NAN_LOGITS)


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row. (B, V)

    Raises:
        NumericalError: the logits are not finite.
    """
    if all(sampler.plain for sampler in samplers):
        check_logits(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [sampler(row) for sampler, row in zip(samplers, logits, strict=True)]
