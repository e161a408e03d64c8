"""Options of sampling."""

from dataclasses import dataclass
from math import isfinite

from sonic_kv.options import Options, option, require


@dataclass(frozen=True)
class SamplingConfig(Options):
    """How the next token is chosen and when a reply ends."""

    max_new_tokens: int = option(128, "longest reply, in tokens", least=1)
    temperature: float | None = option(
        None, "how random replies are; 0: not at all; without it: the model's own default", least=0.0
    )
    top_k: int | None = option(
        None, "only this many best tokens; 0: all; without it: the model's own default", least=0
    )
    top_p: float | None = option(
        None,
        "nucleus sampling: smallest set of tokens with this probability; without it: the model's own default",
        above=0.0,
        most=1.0,
    )
    min_p: float | None = option(
        None,
        "only tokens with this share of the best one's probability; without it: the model's own default",
        least=0.0,
        most=1.0,
        flag=False,
    )
    repetition_penalty: float | None = option(
        None,
        "above 1: tokens that stand in the dialogue become less likely; without it: the model's own default",
        above=0.0,
        flag=False,
    )
    presence_penalty: float = option(
        0.0,
        "subtracted from the logits of tokens that the reply already has",
        least=-2.0,
        most=2.0,
        flag=False,
    )
    frequency_penalty: float = option(
        0.0,
        "the same, once for each time that the reply has the token",
        least=-2.0,
        most=2.0,
        flag=False,
    )
    logit_bias: tuple[tuple[float, ...], ...] = option(
        (), "pairs of a token's id and what is added to its logit", flag=False
    )
    grammar: str | None = option(
        None, "the grammar that the reply follows, as llguidance's Lark has it", flag=False
    )
    stop: tuple[str, ...] = option((), "texts that end the reply (they are not part of it)")
    seed: int | None = option(
        None, "seed of the sampling; without it: a new one each time", least=0, below=1 << 63
    )

    def check(self) -> None:
        require(all(self.stop), "a stop text must not be empty")
        pairs = [
            len(pair) == 2 and float(pair[0]).is_integer() and isfinite(pair[1]) for pair in self.logit_bias
        ]
        require(all(pairs), "logit_bias is a list of pairs: a token's id, and what is added to its logit")
