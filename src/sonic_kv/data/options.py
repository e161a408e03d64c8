"""Options of synthetic dialogues."""

from dataclasses import dataclass
from typing import Literal

from sonic_kv.options import Options, option, require, share


@dataclass(frozen=True)
class SynthConfig(Options):
    """Which synthetic dialogues are generated, and what is in them."""

    dialogues: int = option(10_000, "how many dialogues", least=0)
    split: Literal["train", "validation", "test"] = option("train", "splits share no wording and no entity")
    seed: int = option(0, "seed of the dialogues")
    min_exchanges: int = option(4, "fewest exchanges of a dialogue", least=1)
    max_exchanges: int = option(12, "most exchanges of a dialogue", least=1)
    min_distance: int = option(1, "fewest exchanges from a fact to its question", least=1, flag=False)
    max_distance: int = option(64, "most exchanges from a fact to its question", least=1)
    question_share: float = share(
        0.5, "share of the exchanges that ask, where there is a fact to ask for", flag=False
    )
    fact_share: float = share(
        0.7, "share of the other exchanges that state a fact; the rest is chatter", flag=False
    )
    update_share: float = share(0.12, "share of the stated facts that change an earlier one", flag=False)
    coreference_share: float = share(
        0.15, "share of facts followed by a second one about 'she' or 'he'", flag=False
    )
    system_share: float = share(0.4, "share of dialogues with a system prompt", flag=False)
    chatter_sentences: int = option(2, "most sentences of a chatter message", least=1, flag=False)
    count_share: float = share(
        0.15, "share of the stated facts that start or change a running count", flag=False
    )
    instruction_share: float = share(0.15, "share of dialogues with a standing instruction", flag=False)
    secret_share: float = share(
        0.4, "share of codes and passwords that the user later declares secret", flag=False
    )
    script_share: float = share(
        0.05, "share of composed names in other scripts than the Latin one", flag=False
    )
    noise_share: float = share(0.3, "share of training sentences with words left out and put in", flag=False)
    pair_share: float = share(
        0.15, "share of training messages that state a fact beside their own matter", flag=False
    )
    aside_share: float = share(
        0.15, "share of training messages of facts and questions that hold chatter too", flag=False
    )
    self_share: float = share(
        0.25, "share of training facts about people that are about the user", flag=False
    )
    casual_share: float = share(
        0.15, "share of training messages that are typed in a hurry: what's, I'm", flag=False
    )
    unnamed_share: float = share(0.15, "share of training people who are known by relation only", flag=False)

    def check(self) -> None:
        require(self.min_exchanges <= self.max_exchanges, "exchanges need min_exchanges <= max_exchanges")
        require(self.min_distance <= self.max_distance, "distances need min_distance <= max_distance")
