"""Options of synthetic dialogues."""

from dataclasses import dataclass
from typing import Literal

from sonic_kv.options import Options, option, require, share


@dataclass(frozen=True)
class SynthConfig(Options):
    """Which synthetic dialogues are generated, and what is in them."""

    dialogues: int = option(10_000, "how many dialogues", least=0)
    split: Literal["train", "validation", "test"] = option(
        "train", "which split; the splits share no wording and no entity"
    )
    seed: int = option(0, "seed of the dialogues")
    min_exchanges: int = option(4, "fewest exchanges of a dialogue", least=1)
    max_exchanges: int = option(12, "most exchanges of a dialogue", least=1)
    min_distance: int = option(1, "fewest exchanges from a fact to its question", least=1, flag=False)
    max_distance: int = option(64, "most exchanges from a fact to its question", least=1, flag=False)
    question_share: float = share(
        0.5, "share of the exchanges that ask, where there is a fact to ask for", flag=False
    )
    fact_share: float = share(
        0.7, "share of the other exchanges that state a fact; the rest is chatter", flag=False
    )
    chatter_sentences: int = option(2, "most sentences of a chatter message", least=1, flag=False)

    def check(self) -> None:
        require(self.min_exchanges <= self.max_exchanges, "exchanges need min_exchanges <= max_exchanges")
        require(self.min_distance <= self.max_distance, "distances need min_distance <= max_distance")
