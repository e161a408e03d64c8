"""The stream of training dialogues: several sources and synthetic ones, reproducible from any step on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.data.tokens import TokenisedSource, trainable, truncate
from sonic_kv.errors import DataError
from sonic_kv.model.chat_format import ChatFormat
from sonic_kv.model.encoded import Encoded
from sonic_kv.training.options import TrainConfig


class Mixture:
    """Dialogues by step and place in the batch: the same ones whatever came before, and on any process.

    Raises:
        DataError: a source cannot be read, or sources have a share but no dialogue.
    """

    def __init__(self, format: ChatFormat, config: TrainConfig, synth: SynthConfig) -> None:
        self.format, self.config, self.synth = format, config, synth
        self.sources = tokenised(format, config, config.data)
        self.skipped = sum(source.skipped for source in self.sources)
        self._weights = list(config.data_weights) or [float(len(source)) for source in self.sources]
        self._share = config.data_share if config.data else 0.0
        if self._share and not any(self.sources):
            raise DataError(
                f"no dialogue to train on in {', '.join(config.data)}: give other --data, or none"
            )
        for source, weight in zip(self.sources, self._weights, strict=True):
            if weight and not len(source):
                raise DataError(f"{source.source} has a weight, but no dialogue to train on")

    def dialogue(self, step: int, place: int) -> Encoded:
        """One dialogue of a step's batch: with a finished exchange, and a turn after it."""
        rng = random.Random(f"{self.config.seed}-{step}-{place}")
        if rng.random() < self._share:
            (source,) = rng.choices(self.sources, self._weights)
            return source[rng.randrange(len(source))]
        return next(
            synthetic(self.format, replace(self.synth, seed=rng.getrandbits(48)), self.config.max_tokens)
        )


def tokenised(format: ChatFormat, config: TrainConfig, sources: Sequence[str]) -> list[TokenisedSource]:
    """The sources as tokens, from the cache where they are there."""
    return [
        TokenisedSource(
            source, format, config.token_cache, config.max_tokens, skip_malformed=config.skip_malformed
        )
        for source in sources
    ]


def synthetic(format: ChatFormat, synth: SynthConfig, max_tokens: int) -> Iterator[Encoded]:
    """Endless synthetic dialogues that can be trained on.

    Raises:
        DataError: 100 in a row cannot: they are too short, or cut too early.
    """
    rng, missed = random.Random(synth.seed), 0
    while missed < 100:
        one = replace(synth, dialogues=1, seed=rng.getrandbits(48))
        for dialogue in generate_dialogues(one):
            encoded = truncate(format.encode(dialogue["messages"]), max_tokens)
            missed = 0 if trainable(encoded) else missed + 1
            if not missed:
                yield encoded
    raise DataError(
        f"synthetic dialogues have one exchange only, or {max_tokens} tokens cut them in their first: "
        "raise max_exchanges or max_tokens"
    )
