"""The folder of a training run: options, checkpoint, log, progress, the best adapter so far, bad batches."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonic_kv import __version__
from sonic_kv.errors import ConfigError, FileError
from sonic_kv.files import read_sealed, write_atomic, write_sealed
from sonic_kv.model.adapter import Adapter
from sonic_kv.text import reason

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
LOG = "log.jsonl"
PROGRESS = "progress.json"
Record = dict[str, Any]


class RunFolder:
    """Files of one run. Only the main process of several writes.

    Args:
        options: what the run depends on, as JSON has it: a run is continued under the same ones only.
        base: fingerprint of the base model.

    Raises:
        FileError: the folder cannot be written, or its disk is too full for a checkpoint.
    """

    def __init__(
        self, path: str | Path, adapter: Adapter, options: Record, base: Record, *, writes: bool
    ) -> None:
        self.path, self.adapter, self.writes = Path(path), adapter, writes
        self.options, self.base = json.loads(json.dumps(options)), base
        if writes and not (self.path / CHECKPOINT).exists():
            written = {"sonic_kv": __version__, **self.options}
            write_atomic(self.path / "config.json", json.dumps(written, indent=1).encode())
        weights = sum(p.numel() * p.element_size() for p in adapter.parameters())
        needed = 2 * 4 * weights  # weights, two moments, and the adapter; twice, as files are replaced whole
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise FileError(
                f"{self.path}: {free // 10**6} MB are free on its disk, and a checkpoint needs "
                f"{needed // 10**6 + 1} MB: make room or choose another --out"
            )

    def save(self, step: int, best: float, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint."""
        if not self.writes:
            return
        tensors = {f"adapter.{name}": tensor for name, tensor in self.adapter.state_dict().items()}
        for name, weight in self.adapter.named_parameters():
            for key, value in optimizer.state.get(weight, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        header = {"step": step, "options": self.options, "base": self.base}
        if best > -math.inf:
            header["best"] = best
        write_sealed(self.path / CHECKPOINT, "checkpoint", header, tensors)

    def resume(self, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Continue from the checkpoint, if there is one: steps done, and the best recovery.

        Raises:
            ConfigError: it is of a run with other options, or for another base.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return 0, -math.inf
        header, tensors = read_sealed(path, "checkpoint")
        if changed := _changed(header["options"], self.options):
            raise ConfigError(
                f"{self.path} holds a run with other options ({changed}): choose another --out or remove it"
            )
        if header["base"] != self.base:
            raise ConfigError(f"{self.path} holds a run for another base model: choose another --out")
        self.adapter.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("adapter.")})
        for name, weight in self.adapter.named_parameters():
            start = f"optimizer.{name}."
            state = {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
            if state:
                optimizer.state[weight] = {
                    key: value if key == "step" else value.to(weight.device) for key, value in state.items()
                }
        self._cut_log(int(header["step"]))
        return int(header["step"]), header.get("best", -math.inf)

    def _cut_log(self, step: int) -> None:
        """Leave out lines that a killed run wrote after its last checkpoint: they will be written again."""
        log = self.path / LOG
        if log.exists() and self.writes:
            text = log.read_text(encoding="utf-8")
            lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be torn
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomic(log, "".join(line + "\n" for line in kept).encode())

    def log(self, record: Record) -> None:
        """Append a line to the log."""
        if not self.writes:
            return
        try:
            with open(self.path / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self.path / LOG}: {reason(error)}") from error

    def progress(self, record: Record) -> None:
        """Say how far the run is; a reader sees a whole file at any time."""
        if self.writes:
            write_atomic(self.path / PROGRESS, (json.dumps(record, indent=1) + "\n").encode())

    def keep_best(self, step: int, recovery: float) -> None:
        """Keep the adapter as the best one so far."""
        if self.writes:
            header = {"step": step, "recovery": recovery}
            write_sealed(self.path / BEST, "best adapter", header, self.adapter.state_dict())

    def best(self) -> tuple[Record, Mapping[str, Tensor]]:
        """Header and weights of the best adapter."""
        return read_sealed(self.path / BEST, "best adapter")

    def keep_bad(self, step: int, token_ids: list[Any]) -> Path:
        """Keep a batch that broke a step; its path."""
        path = self.path / f"bad-step-{step}.json"
        if self.writes:
            write_atomic(path, json.dumps(token_ids).encode())
        return path


def _changed(before: Record, now: Record) -> str:
    """The options of a run that are not what they were."""
    old, new = _flat(before), _flat(now)
    return "; ".join(
        f"{name}: {old.get(name)}, now {new.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )


def _flat(options: Record) -> Record:
    """Every option by its own name, without sections."""
    found: Record = {}
    for name, value in options.items():
        found |= _flat(value) if isinstance(value, dict) else {name: value}
    return found
