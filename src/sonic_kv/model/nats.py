"""What makes nats of scores: the damage that dropped entries are predicted to do."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sonic_kv.errors import FileError


@dataclass(frozen=True)
class DamageScale:
    """Predicted damage: KL divergence from full context, in nats a later token, of entries that are dropped.

    A score s, recency included, is ½ log of an entry's damage up to a constant, so an entry counts exp(2 s), several
    the sum. Nats are a power of the sum, since drops interact; both numbers are fitted to measured divergences
    (`training.nats`).

    Attributes:
        factor: nats a token of a sum of one.
        power: of the sum, above 0; about 1.
    """

    factor: float
    power: float

    def nats(self, log_sum: float) -> float:
        """Predicted damage of entries whose sum has this logarithm; -inf: there are none."""
        return math.exp(math.log(self.factor) + self.power * log_sum)

    def log_sum(self, nats: float) -> float:
        """The inverse of `nats`."""
        return (math.log(nats) - math.log(self.factor)) / self.power

    def as_json(self) -> dict[str, float]:
        """As an adapter's file has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, written: Any, file: str) -> "DamageScale | None":
        """What `as_json` wrote; None for None.

        Raises:
            FileError: it is no scale.
        """
        if written is None:
            return None
        try:
            scale = cls(float(written["factor"]), float(written["power"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{file} has a damage scale that cannot be read: {written!r}") from error
        if not all(math.isfinite(value) and value > 0.0 for value in (scale.factor, scale.power)):
            raise FileError(f"{file} has a damage scale that cannot be used: {written!r}")
        return scale
