"""What the routes share: who does the work, and how it is asked for."""

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from sonic_kv.options import parse_bytes
from sonic_kv.server.metrics import Metrics
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig

POSITIONS = 8  # times the model's: so many tokens a dialogue may have, unless the options say otherwise


@dataclass(frozen=True)
class Service:
    """A model that is served.

    Attributes:
        name: of the model.
        sampling: what a request leaves out.
    """

    worker: Worker
    name: str
    sampling: SamplingConfig
    options: ServeOptions
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def most_tokens(self) -> int:
        """Tokens that a dialogue may have."""
        return self.options.max_dialogue_tokens or POSITIONS * self.worker.model.max_length

    def check_model(self, asked: str) -> None:
        """Raise a 404 unless this model is asked for, or none."""
        if asked and asked not in (self.name, *self.options.served_model_name):
            raise HTTPException(404, f"the model {asked!r} does not exist: this server has {self.name!r}")

    def model_body(self) -> dict[str, Any]:
        """The model, as `GET /v1/models` shows it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "sonic-kv",
            "max_model_len": self.worker.model.max_length,
            "compression_ratio": self.worker.default_budget.compression_ratio or 0.0,
            "max_damage": self.worker.default_budget.max_damage,
            "bytes_per_token": self.worker.model.bytes_per_token,
            "bytes_per_entry": self.worker.entry_bytes,
            "kv_memory": parse_bytes(self.options.kv_memory),
        }
