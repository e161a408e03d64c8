"""Options of sampling."""

from dataclasses import dataclass
from math import inf

from sonic_kv.options import option, require


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen and when a reply ends."""

    max_new_tokens: int = option(128, "longest reply, in tokens")
    temperature: float = option(0.0, "0 is greedy")
    top_p: float = option(1.0, "nucleus sampling: smallest set of tokens with this probability")
    stop: tuple[str, ...] = option((), "texts that end the reply (they are not part of it)")
    seed: int | None = option(None, "seed of the sampling; none: a new one each time")

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")
        require(
            0.0 <= self.temperature < inf, f"temperature={self.temperature} must be finite, and not negative"
        )
        require(0.0 < self.top_p <= 1.0, f"top_p={self.top_p} is outside (0, 1]")
        require(not isinstance(self.stop, str), "stop takes a tuple of texts: stop=('END',)")
        require(all(self.stop), "a stop text must not be empty")
        require(self.seed is None or 0 <= self.seed < 1 << 63, f"seed={self.seed} is outside [0, 2**63)")
