"""The training loop: one process or several, resumable at any step.

Everything random is drawn from (seed, step, place in the batch), never from what came before: a resumed
run is the run it continues, and two processes train what one does. Each process runs its share of a
step's dialogues; the adapter's gradients, which are small, are then summed over the processes.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, reduce
from torch import Tensor

from sonic_kv import __version__
from sonic_kv.data.mixture import Mixture, synthetic, tokenised
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError, NumericalError, SonicError, UnsupportedModelError
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.model import SonicModel
from sonic_kv.model.nats import DamageScale
from sonic_kv.model.options import AdapterConfig
from sonic_kv.training import rounds
from sonic_kv.training.folder import Record, RunFolder
from sonic_kv.training.nats import measured
from sonic_kv.training.objectives import CHOICE, DamageObjective, Objective, Run
from sonic_kv.training.options import PlanConfig, TrainConfig
from sonic_kv.training.pace import Pace
from sonic_kv.training.validation import history_losses, recovery

MakeObjective = Callable[[SonicModel, Adapter, PlanConfig, Run], Objective]


class Trainer:
    """A resumable training run in one folder: checkpoint, `log.jsonl`, `progress.json`, at the end the adapter.

    Args:
        model: the base, without adapter.
        adapter: shape of what is trained.
        synth: what synthetic dialogues are mixed in.
        config: data, schedule, files.
        plan: how segments and budgets are drawn.
        objective: makes what is trained towards.

    Raises:
        ConfigError: the folder holds a run with other options; a sharded base would not run equally often on
            every process.
        DataError: a source cannot be read or has no dialogue.
        FileError: the folder cannot be written, or its disk is too full for a checkpoint.
    """

    def __init__(
        self,
        model: SonicModel,
        adapter: AdapterConfig,
        synth: SynthConfig,
        config: TrainConfig,
        plan: PlanConfig | None = None,
        objective: MakeObjective = DamageObjective,
    ) -> None:
        _check_windows(model, adapter, config)
        self.model, self.config = model, config
        self.processes = PartialState(cpu=model.device.type == "cpu")
        torch.manual_seed(config.seed)
        base, self._behaviour = model.fingerprint(), model.behaviour()
        model.adapter = self.adapter = Adapter(model.base, adapter)
        model.base.requires_grad_(False)
        self.adapter.requires_grad_(True)
        self._sharded = config.shard_base or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if self._sharded:
            _shard(model)
        bf16 = multiplies_bf16(model.device) if config.bf16 is None else config.bf16
        self.how = Run(model.device.type == "cuda", config.gradient_checkpointing, bf16)
        self.objective = objective(model, self.adapter, plan or PlanConfig(), self.how)
        self.optimizer = self._optimizer()
        options = {"train": asdict(config), "adapter": asdict(adapter), "synth": asdict(synth)}
        with self.processes.main_process_first():  # one process tokenises, the others read what it wrote
            writes = self.processes.is_main_process
            options |= self.objective.options
            self.folder = RunFolder(config.out, self.adapter, options, base, writes=writes)
            self.step, self.best = self.folder.resume(self.optimizer)
            self.data = Mixture(model.format, config, synth)
            self._held_out = self._validation_dialogues(synth) if config.validate_every else []
        if self._sharded:
            check_even(self.processes.num_processes, config, len(self._held_out))
        self._board = self._tensorboard()
        self._lessons: dict[tuple[int, int], Any] = {}  # what the base has shown, by batch and place in it
        self._unscaled = 0 if self._sharded else config.scale_dialogues
        self._pace, self._seen, self._begun = Pace(), 0.0, time.perf_counter()

    def _optimizer(self) -> torch.optim.Optimizer:
        scorer = [p for n, p in self.adapter.named_parameters() if n.startswith("scorer.")]
        others = [p for n, p in self.adapter.named_parameters() if not n.startswith("scorer.")]
        groups = [
            {"params": scorer, "peak": self.config.scorer_lr},
            {"params": others, "peak": self.config.lr},
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))

    def run(self, progress: Callable[[Record], None] = lambda record: None) -> Path:
        """Train to `max_steps`; returns the adapter's path. `progress` gets every step's record."""
        config = self.config
        while self.step < config.max_steps:
            start = time.perf_counter()
            kind = self._kind(self.step)
            record = {"step": self.step + 1, **self._train_step()}
            self.step += 1
            trained = time.perf_counter() - start
            self._pace.note(kind, trained)
            if config.validate_every and self.step % config.validate_every == 0:
                record |= self._validate()
                self._pace.note("validation", time.perf_counter() - start - trained, len(self._held_out))
            record["seconds"] = round(time.perf_counter() - start, 3)
            if self.step % config.log_every == 0 or "recovery" in record:
                self._log(record)
            progress(self._report(kind, record))
            if self.step % config.save_every == 0 or self.step == config.max_steps:
                self.folder.save(self.step, self.best, self.optimizer)
        return self._finish(progress)

    def _kind(self, step: int) -> str:
        """What is done in a step, counted from 0."""
        if step >= self.alone and self.objective.then:
            return "student" if step >= self._scorer_steps else "both"
        return "reading" if rounds.is_new(step, self.config.reuse) else "scorer"

    def _report(self, kind: str, record: Record) -> Record:
        """A step's record with what is left to do; the same goes into the folder."""
        self._seen += record["tokens"]
        config, left = self.config, range(self.step, self.config.max_steps)
        work = dict(Counter(self._kind(step) for step in left))
        if config.validate_every:
            times = config.max_steps // config.validate_every - self.step // config.validate_every
            work["validation"] = times * len(self._held_out)
        work["scale"] = self._unscaled
        elapsed, remaining = time.perf_counter() - self._begun, self._pace.remaining(work)
        found = {
            **record,
            "phase": {"student": self.objective.then, "both": "both", "scale": "scale"}.get(
                kind, "importance"
            ),
            "max_steps": config.max_steps,
            "tokens_per_second": round(self._seen / max(elapsed, 1e-3), 1),
            "elapsed": round(elapsed, 1),
            "remaining": None if remaining is None else round(remaining, 1),
        }
        self.folder.progress(found)
        return found

    def _train_step(self) -> Record:
        config, world, rank = self.config, self.processes.num_processes, self.processes.process_index
        scorer, others = self.optimizer.param_groups
        others["lr"] = others["peak"] * self._rate(self.alone, config.max_steps)
        scorer["lr"] = scorer["peak"] * self._rate(0, self._scorer_steps)
        if self.objective.then == CHOICE and self.step >= self._scorer_steps:
            scorer["lr"] = others["lr"]
            if self.step == self._scorer_steps:  # its gradients have another size from here on
                self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        learns, student = self.step < self._scorer_steps, self.step >= self.alone
        groups, tokens = self._read(range(rank, config.batch_size, world), learns, student)
        sums = {"tokens": float(tokens)}
        for lessons in groups:
            found = self.objective.backward(lessons, 1.0 / config.batch_size, scorer=learns, student=student)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value / config.batch_size
        sums = self._over_processes(sums)
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), config.grad_clip))
        if not all(math.isfinite(value) for value in (norm, *sums.values())):
            self._refuse([lesson.encoded for lessons in groups for lesson in lessons])
        self.optimizer.step()
        rates = {"scorer_lr": scorer["lr"], "lr": others["lr"]}
        return {name: round(value, 6) for name, value in {**sums, "grad_norm": norm, **rates}.items()}

    def _read(self, places: Iterable[int], scorer: bool, student: bool) -> tuple[list[list[Any]], int]:
        """The step's lessons, in groups that share their forwards, and the tokens of those that had to be read.

        What only the scorer learns from is kept for the steps in which it does so again.
        """
        config, times = self.config, 1 if student else self.config.reuse
        if student or rounds.begins(self.step, times):
            self._lessons.clear()
        number = self.step if student else rounds.source(self.step, times, config.seed)
        missing = {p: self.data.dialogue(number, p) for p in places if (number, p) not in self._lessons}
        for group in _packs(missing, config.pack_tokens):
            rngs = [random.Random(f"{config.seed}-plan-{number}-{place}") for place in group]
            read = self.objective.read([missing[place] for place in group], rngs, scorer=scorer)
            self._lessons.update({(number, p): lesson for p, lesson in zip(group, read, strict=True)})
        wanted = {place: self._lessons[number, place] for place in places}
        packs = _packs({place: lesson.encoded for place, lesson in wanted.items()}, config.pack_tokens)
        tokens = sum(len(encoded.token_ids) for encoded in missing.values())
        return [[wanted[place] for place in group] for group in packs], tokens

    def _rate(self, start: int, end: int) -> float:
        """Share of the peak rate of what is trained from step `start` to `end`."""
        done = self.step - start
        warm_up = min((done + 1) / max(self.config.warmup_steps, 1), 1.0)
        return warm_up * (1.0 - done / (end - start)) if 0 <= done < end - start else 0.0

    @property
    def alone(self) -> int:
        """First steps, before what the objective learns then."""
        config = self.config
        if config.importance_steps is not None:
            return config.importance_steps
        fifths = {"": 5, CHOICE: 4}.get(self.objective.then, 3)
        return fifths * config.max_steps // 5

    @property
    def _scorer_steps(self) -> int:
        """Steps in which the scorer learns importance."""
        rests = self.objective.scorer_rests and self.objective.then
        # a LoRA needs scores from the start
        goes_on = not rests or (self.adapter.reencodes and not self.alone)
        return self.config.max_steps if goes_on else min(self.alone, self.config.max_steps)

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum gradients and logged numbers over all processes."""
        if self.processes.num_processes == 1:
            return sums
        weights = list(self.adapter.parameters())
        # a weight that no process has a gradient for keeps none: the optimiser then leaves it alone
        has = [float(w.grad is not None) for w in weights]
        device = weights[0].device
        flat = torch.cat(
            [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]
        )
        total: Tensor = reduce(torch.cat((torch.tensor(has, device=device), flat)), "sum")
        counts, gradients = total[: len(weights)], total[len(weights) :].split([w.numel() for w in weights])
        for weight, count, gradient in zip(weights, counts, gradients, strict=True):
            weight.grad = gradient.view_as(weight) if count else None
        found = gather_object([sums])
        return {name: sum(s.get(name, 0.0) for s in found) for name in {n: None for s in found for n in s}}

    def _validate(self) -> Record:
        """Recovery on held-out dialogues; the best adapter so far is kept."""
        rank, world = self.processes.process_index, self.processes.num_processes
        mine = self._held_out[rank::world]
        sums = history_losses(self.model, self.adapter, mine, self.how).to(self.model.device)
        found = recovery(sums if world == 1 else reduce(sums, "sum"))
        if found["recovery"] > self.best:
            self.best = found["recovery"]
            self.folder.keep_best(self.step, self.best)
        return {name: round(value, 4) for name, value in found.items()}

    def _validation_dialogues(self, synth: SynthConfig) -> list[Encoded]:
        config, format = self.config, self.model.format
        count = config.validation_dialogues
        if not config.validation_data:
            held_out = SynthConfig(**{**asdict(synth), "split": "validation", "seed": config.seed})
            return list(islice(synthetic(format, held_out, config.max_tokens), count))
        sources = tokenised(format, config, config.validation_data)
        rng = random.Random(config.seed)
        every = [(source, number) for source in sources for number in range(len(source))]
        if not every:
            raise ConfigError("validation_data holds no dialogue of more than one exchange")
        return [source[number] for source, number in rng.sample(every, min(count, len(every)))]

    def _tensorboard(self) -> Any:
        if not (self.config.tensorboard and self.processes.is_main_process):
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("tensorboard=true needs it installed: pip install 'sonic-kv[train]'") from error
        return SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=self.step + 1)

    def _refuse(self, batch: list[Encoded]) -> None:
        ids = [encoded.token_ids for encoded in batch]
        if self.processes.num_processes > 1:
            ids = gather_object(ids)
        path = self.folder.keep_bad(self.step + 1, ids)
        raise NumericalError(
            f"loss or gradient of step {self.step + 1} is not finite; its token ids are in {path}"
        )

    def _log(self, record: Record) -> None:
        self.folder.log(record)
        if self._board is not None:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, record["step"])

    def _scale(self, progress: Callable[[Record], None]) -> DamageScale | None:
        """What the scores are worth in nats, on dialogues that no step has learned from."""

        def dialogues() -> Iterator[Encoded]:
            config, start = self.config, time.perf_counter()
            for number in range(self._unscaled):
                encoded = self.data.dialogue(config.max_steps + number, 0)
                yield encoded
                self._unscaled -= 1
                self._pace.note("scale", time.perf_counter() - start)
                start = time.perf_counter()
                progress(self._report("scale", {"step": self.step, "tokens": len(encoded.token_ids)}))

        try:
            return measured(self.model, dialogues()) if self._unscaled else None
        except SonicError:  # the adapter is of use without it
            return None

    def _finish(self, progress: Callable[[Record], None]) -> Path:
        """Write the adapter: the best one if recovery was measured, else the last."""
        if self._board is not None:
            self._board.close()
        notes = {"sonic_kv": __version__, "steps": self.step, **self.folder.options}
        if self.best > -math.inf:
            self.processes.wait_for_everyone()
            header, tensors = self.folder.best()
            self.adapter.load_state_dict(tensors)
            notes |= {"steps": header["step"], "recovery": header["recovery"]}
        self.adapter.eval()
        path = self.folder.path / "adapter.safetensors"
        if self.processes.is_main_process:
            self.adapter.scale = self._scale(progress)
            path = self.adapter.save(self.folder.path, self.folder.base, notes, self._behaviour)
        self.processes.wait_for_everyone()
        return path


def _check_windows(model: SonicModel, adapter: AdapterConfig, config: TrainConfig) -> None:
    """Refuse, as `UnsupportedModelError`, what one pass cannot show of a model with a sliding window."""
    window = model.sliding_window
    if window is not None and (adapter.lora_rank or config.max_tokens > window):
        raise UnsupportedModelError(
            f"the model has a sliding window of {window} tokens, and training reads a dialogue in one pass: "
            f"set max_tokens to at most {window}, and lora_rank to 0"
        )


def multiplies_bf16(device: torch.device) -> bool:
    """Whether `device` is known to have instructions for bf16 products.

    Emulated ones take a CPU 30 times as long as float32. Of CPUs, only AVX-512's are known.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _packs(batch: dict[int, Encoded], pack_tokens: int) -> Iterable[list[int]]:
    """Places of the dialogues that share a forward, as many as have room: those of about the same length."""
    pack: list[int] = []
    used = 0
    for place, encoded in sorted(batch.items(), key=lambda item: len(item[1].token_ids)):
        if pack and used + len(encoded.token_ids) > pack_tokens:
            yield pack
            pack, used = [], 0
        pack.append(place)
        used += len(encoded.token_ids)
    if pack:
        yield pack


def check_even(world: int, config: TrainConfig, validation_dialogues: int) -> None:
    """All processes gather a sharded layer together: one that ran the base more often would wait forever.

    Raises:
        ConfigError: not every one of `world` processes would run the base equally often.
    """
    counts = {"batch_size": config.batch_size, "validation dialogues": validation_dialogues}
    for name, count in counts.items():
        if count % world:
            raise ConfigError(
                f"{name}: {count} is no multiple of the {world} processes, and all of them must run a sharded "
                "base equally often"
            )
    if config.pack_tokens and world > 1:
        raise ConfigError("pack_tokens: all processes must run a sharded base equally often, leave it out")


def _shard(model: SonicModel) -> None:
    """Shard the base's layers over the processes (FSDP2); the adapter stays whole on each."""
    if not torch.distributed.is_initialized():
        raise ConfigError(
            "shard_base needs several processes: start them with `accelerate launch` or torchrun"
        )
    from torch.distributed.fsdp import fully_shard

    for module in list(model.base.get_decoder().children()):
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                # a layer is a root of its own here, and FSDP2 would leave roots whole after their first forward
                fully_shard(layer, reshard_after_forward=True)
