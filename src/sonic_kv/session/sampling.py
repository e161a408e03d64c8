"""Choosing tokens as the model's makers meant it: `generation_config`, and what an option says otherwise."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sonic_kv.errors import NumericalError
from sonic_kv.model.grammar import GrammarState
from sonic_kv.model.model import SonicModel
from sonic_kv.model.processors import made_with, processors, warpers
from sonic_kv.session.options import SamplingConfig

NAN_LOGITS = "the model produced NaN logits: its weights are damaged or its dtype overflows"
# What leaves the distribution as it is.
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def settled(sampling: SamplingConfig, base: Any) -> SamplingConfig:
    """The options with a number in the place of every None: the makers', or none at all.

    A model whose makers do not ask for sampling is greedy unless a temperature is given.
    """
    made = made_with(base)
    found: dict[str, Any] = {}
    for name, nothing in PLAIN.items():
        value = getattr(sampling, name)
        found[name] = made.get(name, nothing) if value is None else value
    if sampling.temperature is None and not made.get("do_sample"):
        found["temperature"] = 0.0
    return replace(sampling, **found)


class Sampler:
    """Chooses the next tokens of one dialogue, with transformers' own processors in its own order.

    Args:
        sampling: None in it: as the makers of `base` say.
        said: the transcript so far, for penalties on repetition.
        grammar: where the reply stands in its grammar.

    Attributes:
        thinking: what comes next is reasoning, for which no grammar holds.
    """

    def __init__(
        self,
        base: Any,
        sampling: SamplingConfig,
        said: Sequence[int] = (),
        grammar: GrammarState | None = None,
    ) -> None:
        self.thinking, self._grammar = False, grammar
        options = {name: getattr(settled(sampling, base), name) for name in PLAIN}
        self.greedy = options["temperature"] == 0.0
        bias = {int(token): added for token, added in sampling.logit_bias}
        self._process = processors(base, options.pop("repetition_penalty"), bias)
        self._warp = None if self.greedy else warpers(**options)
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self.plain = (
            self.greedy and self._process is None and not (self._presence or self._frequency or grammar)
        )
        self._ids, self._start = list(said), len(said)
        self._generator = torch.Generator(base.device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def scores(self, logits: Tensor) -> Tensor:
        """What the next token is chosen by: logits as processors leave them. (V,) → (V,)"""
        scores = logits[None].float()
        ids = torch.tensor([self._ids], device=logits.device)
        if self._process is not None:
            scores = self._process(ids, scores)
        if (self._presence or self._frequency) and len(self._ids) > self._start:
            counts = torch.bincount(ids[0, self._start :], minlength=scores.shape[-1])
            scores = scores - self._frequency * counts - self._presence * (counts > 0)
        if self._grammar is not None and not self.thinking:
            scores = self._grammar.mask(scores[0])[None]
        if self._warp is not None:  # the best is at 0, so that no temperature, however low, overflows
            scores = self._warp(ids, scores - scores.max(-1, keepdim=True).values)
        return scores[0]

    def __call__(self, logits: Tensor) -> int:
        """The next token. (V,) → its id; it counts as said.

        Raises:
            NumericalError: the logits are not finite.
        """
        check_logits(logits)
        scores = self.scores(logits)
        if self.greedy:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        self._ids.append(token)
        if self._grammar is not None and not self.thinking:
            self._grammar.take(token)
        return token


def sampler_of(model: SonicModel, sampling: SamplingConfig, said: Sequence[int]) -> Sampler:
    """What chooses the tokens of a reply.

    Args:
        said: the transcript so far.

    Raises:
        ConfigError: the grammar cannot be followed.
    """
    grammar = None if sampling.grammar is None else model.grammars.state(sampling.grammar)
    return Sampler(model.base, sampling, said, grammar)


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
