"""Training an adapter: one pass over whole dialogues, budgets drawn anew for each.

A step takes each dialogue twice. The full-context base runs first, without gradient: its logits are
the target of distillation, its keys and values are what the scorer sees, and the attention its later
queries pay is what the scorer learns. Then the compressed run, with Nexus tokens and lifetimes that
a session would have with the drawn budgets, in one pass.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonic_kv import __version__, losses
from sonic_kv.adapter import Adapter
from sonic_kv.attention import Observed, Probe, sonic_attention
from sonic_kv.cache import SessionCache
from sonic_kv.config import AdapterConfig, SynthConfig, TrainConfig
from sonic_kv.data.mixture import Mixture
from sonic_kv.errors import ConfigError, FileError, NumericalError
from sonic_kv.files import read_sealed, write_atomic, write_sealed
from sonic_kv.layout import Layout, interleave, lifetimes
from sonic_kv.model import SonicModel
from sonic_kv.segments import Encoded, segment_ends
from sonic_kv.selection import Selection, candidates, in_elastic_order

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
CANDIDATES = (1.0, 2.0, 4.0)  # shares of tokens re-encoded, drawn for every segment


@dataclass(frozen=True)
class Teacher:
    """What the full-context base says and does on one dialogue of T tokens."""

    logits: Tensor  # (T, V)
    keys: list[Tensor]  # per layer, unrotated (1, G, T, D)
    values: list[Tensor]  # per layer (1, G, T, D)
    paid: list[Tensor]  # per layer, attention of the sampled queries (G, R, Q, T)
    queries: Tensor  # transcript positions of the sampled queries (Q,)


@dataclass(frozen=True)
class Entries:
    """Entries of one layer as the selection sees them."""

    positions: Tensor  # (1, G, N)
    scores: Tensor  # (1, G, N)


@dataclass(frozen=True)
class Plan:
    """Segments, Nexus tokens and lifetimes of one compressed run."""

    layout: Layout
    lifetime: list[Tensor]  # per layer (1, G, T)
    ends: list[int]


@torch.no_grad()
def run_teacher(model: SonicModel, token_ids: Tensor, queries: Tensor) -> Teacher:
    """The full-context forward. `token_ids` (T,), `queries` (Q,) positions to observe."""
    length = token_ids.shape[0]
    probe = Probe(rows=queries[None])
    cache = SessionCache(model.num_layers)
    causal = torch.ones(length, length, dtype=torch.bool, device=token_ids.device).tril()[None, None]
    with sonic_attention(model.base):
        output = model.base(
            input_ids=token_ids[None], attention_mask=causal, past_key_values=cache, sonic=Observed(probe)
        )
    back = -torch.arange(length, device=token_ids.device)
    return Teacher(
        logits=output.logits[0],
        keys=[model.rope.rotate(n, layer.keys, back) for n, layer in enumerate(cache.layers)],
        values=[layer.values for layer in cache.layers],
        paid=[probe.seen[n][0] for n in range(model.num_layers)],
        queries=queries,
    )


def importance_loss(
    adapter: Adapter, teacher: Teacher, start: int, ends: Sequence[int], reduce: str, power: float
) -> Tensor:
    """`losses.importance` at every boundary that queries follow."""
    found = []
    raw = [adapter.scorer(n, keys, teacher.values[n])[0] for n, keys in enumerate(teacher.keys)]  # (G, T)
    for end in ends:
        if not bool((teacher.queries >= end).any()):
            continue
        distance = (end - torch.arange(start, end, device=raw[0].device)).expand(raw[0].shape[0], -1)
        scores = [s[:, start:end] + adapter.scorer.recency(n, distance) for n, s in enumerate(raw)]
        targets = [
            losses.attention_target(p, teacher.queries, end, start, reduce, power) for p in teacher.paid
        ]
        found.append(losses.importance(scores, targets))
    return torch.stack(found).mean()


@torch.no_grad()
def draw_plan(
    model: SonicModel,
    adapter: Adapter,
    teacher: Teacher,
    encoded: Encoded,
    ends: list[int],
    config: TrainConfig,
    rng: random.Random,
) -> Plan:
    """Close the segments as a session would, with budgets, allocation and exceptions drawn at random.

    The ratio is drawn for the dialogue and jittered at every closing; some segments stay raw (their
    kept entries are not re-encoded); scores sometimes get Gumbel noise (random elastic subsets).
    """
    prefix, length = encoded.prefix_length, len(encoded.token_ids)
    learned = adapter.config.form == "learned"
    selection = Selection(adapter.scorer.recency, by_segment=learned or rng.random() < 0.3)
    noise = rng.choice((0.0, 0.0, 0.5))
    ratio = rng.uniform(config.ratio_min, config.ratio_max)
    scores = [adapter.scorer(n, keys, teacher.values[n]) for n, keys in enumerate(teacher.keys)]  # (1, G, T)
    if noise:
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        uniform = torch.rand(scores[0].shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(scores[0].device)
        scores = [s - noise * (-uniform.log()).log() for s in scores]
    heads, device = scores[0].shape[1], scores[0].device
    memory = [Entries(torch.empty(1, heads, 0, dtype=torch.long, device=device), s[..., :0]) for s in scores]
    starts: list[int] = []
    nexus: list[Tensor] = []
    kept: list[list[Tensor]] = [[] for _ in scores]
    for start, end in zip([prefix, *ends], ends, strict=False):
        starts.append(start)
        here = min(max(ratio + rng.uniform(-0.1, 0.1), 0.0), config.ratio_max)
        fresh = torch.arange(start, end, device=device).expand(1, heads, -1)
        old = memory[0].positions.shape[-1]
        entries = [
            Entries(torch.cat((m.positions, fresh), -1), torch.cat((m.scores, s[..., start:end]), -1))
            for m, s in zip(memory, scores, strict=True)
        ]
        total = min(max(round((1 - here) * (end - prefix)), len(starts)), old + end - start)
        everything = total == old + end - start  # a session then keeps the segment raw
        if learned and not everything:
            entries = [Entries(e.positions, in_elastic_order(e.scores, old)) for e in entries]
        counts = selection.counts(entries, starts, end, total)
        selected = selection.keep(entries, starts, end, total, counts)
        if learned:
            chosen = torch.arange(end - start - counts[-1], end - start, device=device)
        else:
            chosen = candidates(entries, selected, old, rng.choice(CANDIDATES))
        raw = everything or (not learned and rng.random() < config.raw_share)
        nexus.append(start + chosen[:0] if raw else start + chosen)
        memory = []
        for layer, index in enumerate(selected):
            entry = entries[layer]
            memory.append(
                Entries(entry.positions.gather(-1, index[None]), entry.scores.gather(-1, index[None]))
            )
            kept[layer].append(memory[-1].positions[0])
    layout = interleave(length, prefix, ends, [n.cpu() for n in nexus], whole_segment=model.whole_segment)
    lifetime = [lifetimes(layout, [k.cpu() for k in ks]).to(device) for ks in kept]
    return Plan(Layout(**{k: v.to(device) for k, v in vars(layout).items()}), lifetime, ends)


def distillation_loss(
    model: SonicModel, adapter: Adapter, teacher: Teacher, token_ids: Tensor, plan: Plan, share: float
) -> Tensor:
    """The compressed run's distance to the base on every token after the first closed segment.

    Run backward inside `adapter.attached(plan.layout.nexus)`.
    """
    after = (~plan.layout.nexus[0] & (plan.layout.index[0] >= plan.ends[0])).nonzero()[:, 0]
    student = model.one_pass(token_ids[None], plan.layout, plan.lifetime, rows=after)[0]
    return losses.distillation(student, teacher.logits[plan.ends[0] :], share)


class Trainer:
    """A resumable training run in one folder: checkpoint, `log.jsonl`, and at the end the adapter.

    Everything random in a step is drawn from (seed, step), so that a resumed run is the run it
    continues.

    Args:
        model: the base, without adapter.
        adapter: shape of what is trained.
        synth: what synthetic dialogues are mixed in.

    Raises:
        ConfigError: the folder holds a run with other options.
        FileError: the folder cannot be written.
    """

    def __init__(
        self, model: SonicModel, adapter: AdapterConfig, synth: SynthConfig, config: TrainConfig
    ) -> None:
        self.model, self.config = model, config
        self.folder = Path(config.out)
        torch.manual_seed(config.seed)
        model.adapter = self.adapter = Adapter(model.base, adapter)
        for weight in model.base.parameters():
            weight.requires_grad_(False)
        for weight in self.adapter.parameters():
            weight.requires_grad_(True)
        self.data = Mixture.read(
            model.format, config.data, config.data_share, synth, config.max_tokens, config.seed
        )
        scorer = [p for n, p in self.adapter.named_parameters() if n.startswith("scorer.")]
        others = [p for n, p in self.adapter.named_parameters() if not n.startswith("scorer.")]
        self.optimizer = torch.optim.AdamW(
            [{"params": scorer, "peak": config.scorer_lr}, {"params": others, "peak": config.lr}],
            weight_decay=0.0,
            betas=(0.9, 0.98),
        )
        self.step = 0
        self._options = {"train": asdict(config), "adapter": asdict(adapter), "synth": asdict(synth)}
        self._resume()
        written = {"sonic_kv": __version__, **self._options}
        write_atomic(self.folder / "config.json", json.dumps(written, indent=1).encode())

    def run(self, progress: Callable[[dict[str, Any]], None] = lambda record: None) -> Path:
        """Train to `max_steps`; returns the adapter's path. `progress` gets every step's record."""
        while self.step < self.config.max_steps:
            start = time.perf_counter()
            record = {"step": self.step + 1, **self._train_step()}
            self.step += 1
            record["seconds"] = round(time.perf_counter() - start, 3)
            progress(record)
            if self.step % self.config.log_every == 0:
                self._log(record)
            if self.step % self.config.save_every == 0 or self.step == self.config.max_steps:
                self._save()
        notes = {"sonic_kv": __version__, "steps": self.step, **self._options}
        return self.adapter.eval().save(self.folder, self.model.fingerprint(), notes)

    def _train_step(self) -> dict[str, float]:
        config = self.config
        rng = random.Random(f"{config.seed}-plan-{self.step}")
        batch = self.data.batch(self.step, config.batch_size)
        rate = min((self.step + 1) / max(config.warmup_steps, 1), 1.0)
        rate *= 1.0 - self.step / config.max_steps
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"tokens": 0.0}
        for encoded in batch:
            for name, value in self._backward(encoded, rng, len(batch)).items():
                sums[name] = sums.get(name, 0.0) + value / len(batch)
            sums["tokens"] += len(encoded.token_ids)
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), config.grad_clip))
        if not all(math.isfinite(value) for value in (norm, *sums.values())):
            self._refuse(batch)
        self.optimizer.step()
        return {**{name: round(value, 5) for name, value in sums.items()}, "grad_norm": round(norm, 4)}

    def _backward(self, encoded: Encoded, rng: random.Random, batch_size: int) -> dict[str, float]:
        """Accumulate one dialogue's gradients; returns its losses."""
        config, model, adapter = self.config, self.model, self.adapter
        ids = torch.tensor(encoded.token_ids, device=model.device)
        low, high = rng.choice((1, 16, 48, 96)), rng.choice((96, 192, 512))
        ends = [end for end in segment_ends(encoded, low, high) if end < len(ids) - 1]
        if not ends:  # too short for these sizes: close after its first exchange
            ends = [encoded.exchange_ends[0]]
        later = list(range(ends[0], len(ids)))
        queries = torch.tensor(
            sorted(rng.sample(later, min(config.importance_queries, len(later)))), device=ids.device
        )
        found: dict[str, float] = {}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.bf16):
            teacher = run_teacher(model, ids, queries)
            if config.importance_weight:
                loss = importance_loss(
                    adapter,
                    teacher,
                    encoded.prefix_length,
                    ends,
                    config.importance_target,
                    config.importance_power,
                )
                (loss * config.importance_weight / batch_size).backward()
                found["importance"] = loss.item()
            if config.distillation_weight and adapter.reencodes and self.step >= config.importance_steps:
                plan = draw_plan(model, adapter, teacher, encoded, ends, config, rng)
                if bool(plan.layout.nexus.any()):
                    with adapter.attached(plan.layout.nexus):
                        loss = distillation_loss(model, adapter, teacher, ids, plan, config.forward_kl)
                        (loss * config.distillation_weight / batch_size).backward()
                    found["distillation"] = loss.item()
        return found

    def _refuse(self, batch: list[Encoded]) -> None:
        path = self.folder / f"bad-step-{self.step + 1}.json"
        write_atomic(path, json.dumps([encoded.token_ids for encoded in batch]).encode())
        raise NumericalError(
            f"loss or gradient of step {self.step + 1} is not finite; its token ids are in {path}"
        )

    def _log(self, record: dict[str, Any]) -> None:
        try:
            with open(self.folder / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self.folder / LOG}: {error.strerror}") from error

    def _save(self) -> None:
        tensors = {f"adapter.{name}": tensor for name, tensor in self.adapter.state_dict().items()}
        for name, weight in self.adapter.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        header = {"step": self.step, "options": self._options, "base": self.model.fingerprint()}
        write_sealed(self.folder / CHECKPOINT, "checkpoint", header, tensors)

    def _resume(self) -> None:
        """Continue from the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        header, tensors = read_sealed(path, "checkpoint")
        if header["options"] != json.loads(json.dumps(self._options)):
            raise ConfigError(
                f"{self.folder} holds a run with other options: choose another --out or remove it"
            )
        if header["base"] != self.model.fingerprint():
            raise ConfigError(f"{self.folder} holds a run for another base model: choose another --out")
        self.step = int(header["step"])
        self.adapter.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("adapter.")})
        for name, weight in self.adapter.named_parameters():
            start = f"optimizer.{name}."
            state = {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
            if state:
                self.optimizer.state[weight] = {
                    key: value if key == "step" else value.to(weight.device) for key, value in state.items()
                }
        log = self.folder / LOG
        if log.exists():  # lines that a killed run wrote after its last checkpoint will be written again
            text = log.read_text(encoding="utf-8")
            lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be torn
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            write_atomic(log, "".join(line + "\n" for line in kept).encode())
