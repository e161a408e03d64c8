"""The stream of training dialogues: files and synthetic ones, reproducible from any step on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sonic_kv.config import SynthConfig
from sonic_kv.data.dialogues import read_dialogues
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.errors import DataError
from sonic_kv.segments import ChatFormat, Encoded


@dataclass(frozen=True)
class Mixture:
    """Dialogues by step: the same step gives the same dialogues, whatever came before."""

    format: ChatFormat
    dialogues: list[dict[str, Any]]
    share: float
    synth: SynthConfig
    max_tokens: int
    seed: int

    @classmethod
    def read(
        cls,
        format: ChatFormat,
        paths: Sequence[str],
        share: float,
        synth: SynthConfig,
        max_tokens: int,
        seed: int,
    ) -> "Mixture":
        """Load dialogue files; malformed lines are left out and counted in a warning.

        Raises:
            DataError: no dialogue file has a dialogue, but files have a share.
        """
        dialogues = [d for path in paths for d in read_dialogues(path, skip_malformed=True)]
        if share and not dialogues:
            raise DataError(
                "data_share is not 0, but no dialogue file has a dialogue: give --data, or --data-share 0"
            )
        return cls(format, dialogues, share, synth, max_tokens, seed)

    def batch(self, step: int, size: int) -> list[Encoded]:
        """The dialogues of a step, each with at least one exchange and a turn after it."""
        rng = random.Random(f"{self.seed}-{step}")
        found: list[Encoded] = []
        while len(found) < size:
            if rng.random() < self.share:
                dialogue = rng.choice(self.dialogues)
            else:
                synth = replace(self.synth, dialogues=1, seed=rng.getrandbits(48))
                dialogue = next(iter(generate_dialogues(synth)))
            encoded = self.format.encode(dialogue["messages"])
            cut = truncate(encoded, self.max_tokens)
            if cut.exchange_ends and len(cut.token_ids) > cut.exchange_ends[0] + 1:
                found.append(cut)
        return found


def truncate(encoded: Encoded, max_tokens: int) -> Encoded:
    """The dialogue's first `max_tokens` tokens."""
    return Encoded(
        encoded.token_ids[:max_tokens],
        min(encoded.prefix_length, max_tokens),
        [end for end in encoded.exchange_ends if end <= max_tokens],
        encoded.assistant[:max_tokens],
    )
