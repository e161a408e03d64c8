"""Options of sampling."""

from dataclasses import dataclass

from sonic_kv.options import Options, option, require


@dataclass(frozen=True)
class SamplingConfig(Options):
    """How the next token is chosen and when a reply ends."""

    max_new_tokens: int = option(128, "longest reply, in tokens", least=1)
    temperature: float = option(0.0, "0 is greedy", least=0.0)
    top_p: float = option(
        1.0, "nucleus sampling: smallest set of tokens with this probability", above=0.0, most=1.0
    )
    stop: tuple[str, ...] = option((), "texts that end the reply (they are not part of it)")
    seed: int | None = option(None, "seed of the sampling; none: a new one each time", least=0, below=1 << 63)

    def check(self) -> None:
        require(all(self.stop), "a stop text must not be empty")
