"""Speed on a GPU: what docs/performance.md says of it, in some 150 seconds.

    python recipes/gpu/run.py                 on a CUDA device: everything
    python recipes/gpu/run.py steps --seconds 60      one stage
    python recipes/gpu/run.py --toy           the same at toy size on a CPU: a rehearsal

- `tests`: tests/test_together.py, whose kernels and graphs need a GPU.
- `steps`: decode steps of an 8B shape over random entries, both sides as CUDA graphs: full context in one tensor, and
  what a session keeps, of which every KV head has its own number. The largest batches come last.
- `dialogue`: whole dialogues, turn by turn, as `sonic-kv bench dialogue --shape llama-8b --compile` plays them.
- `training`: one pass and segment by segment, as `sonic-kv bench training --shape smollm2-135m`.

Each stage is a process of its own, so that none that fails takes the others along; all start at once, to import
while others run. Rows are printed and appended at once to gpu.jsonl, in $OUT if that is set.
"""

import argparse
import functools
import gc
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sonic_kv.bench import dialogue as dialogues
from sonic_kv.bench import training
from sonic_kv.bench.options import BenchDialogueOptions, BenchTrainingOptions, Shape
from sonic_kv.cache.attention import masked_attention
from sonic_kv.cache.cache import Lengths, SessionCache
from sonic_kv.cache.growing import ALIGNED
from sonic_kv.cache.layers import Memory
from sonic_kv.cli.loading import model_or_shape
from sonic_kv.model.attention import twin
from sonic_kv.model.batch import batch_step
from sonic_kv.model.forward import forward
from sonic_kv.model.graph import GraphStep
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import ModelOptions
from sonic_kv.model.shapes import KNOWN

REMOVED = 0.8
STAGES = {"tests": 45, "steps": 55, "dialogue": 40, "training": 30}  # seconds at most
PREPARING = 30  # seconds in which training may get ready before its turn
CUDA = torch.cuda.is_available()
STEPS, SPARE_BYTES, CHOOSING = (
    20 if CUDA else 3,
    6 << 30,
    2,
)  # CHOOSING: seconds in which another way is tried
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
SHAPE = KNOWN["meta-llama/Llama-3.1-8B-Instruct"] | {"model_type": "llama"}
TOY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 96, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
ROOT = Path(__file__).parents[2]
FILE = Path(os.environ.get("OUT") or Path(__file__).parent / "results") / "gpu.jsonl"
Left = Callable[[], float]  # seconds of a stage


class TooLong(BaseException):
    """A stage has had its time."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `TooLong` after so many seconds."""

    def stop(*_: object) -> None:
        raise TooLong(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def record(kind: str, **row: Any) -> None:
    """Print a row, and append it to the file."""
    row = {"row": kind, **{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}}
    print(json.dumps(row), flush=True)
    with FILE.open("a") as file:
        file.write(json.dumps(row) + "\n")


def attempt(kind: str, seconds: float, run: Callable[[], dict[str, Any]], **row: Any) -> dict[str, Any]:
    """Record what `run` finds and how long it took, or why it found nothing; what it found."""
    begun = time.perf_counter()
    try:
        with limit(seconds):
            row |= run()
    except (Exception, TooLong) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        row["failed"] = f"{type(error).__name__}: {lines[0][:300]}"
        if not isinstance(error, torch.OutOfMemoryError):
            traceback.print_exc()
    record(kind, **row, took=time.perf_counter() - begun)
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
    return row


# --- tests ---------------------------------------------------------------------------------------


class Outcomes:
    """What becomes of each test, as pytest tells it."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            errors = [line[1:].strip() for line in str(report.longrepr).splitlines() if line.startswith("E ")]
            name = report.nodeid.rpartition("::")[2]
            record("test", name=name, outcome=report.outcome, seconds=report.duration, errors=errors[:5])


def tests(toy: bool, left: Left) -> None:
    """Tests of what runs on a GPU alone. The project's settings are left out: they ask for plugins."""
    import pytest

    sys.path.insert(0, str(ROOT / "tests"))
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-k", "kernels or step or recorded"]
    code = pytest.main([*options, str(ROOT / "tests/test_together.py")], [Outcomes()])
    record("tests", code=int(code))


# --- time ----------------------------------------------------------------------------------------


def recorded(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as a CUDA graph; on a CPU, itself."""
    if not CUDA:
        return run
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()

    def replay() -> Any:
        graph.replay()
        return found

    return replay


def seconds(run: Callable[[], Any], times: int = STEPS) -> list[float]:
    """Wall time of each of several runs, with all that they started."""
    found = []
    for _ in range(times):
        if CUDA:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        if CUDA:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return found


# --- the model -----------------------------------------------------------------------------------


def model_of(shape: dict[str, Any]) -> Any:
    """The twin of a base with random weights, made where it is to be."""
    options = {"max_position_embeddings": 1 << 17, "bos_token_id": 0, "eos_token_id": 1}
    config = CONFIG_MAPPING["llama"](**{k: v for k, v in shape.items() if k != "model_type"} | options)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return twin(AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval())


def lengths(dialogues: int, tokens: int, config: Any, removed: float) -> Tensor:
    """Entries of every head, (dialogues, layers, G): few heads keep much, and in the mean it is the budget."""
    torch.manual_seed(1)
    shape = (dialogues, config.num_hidden_layers, config.num_key_value_heads)
    mean = 1 - removed
    least, most = 0.15 * mean, min(3 * mean, 1.0)  # where 80 % is removed, 3 % to 60 % of the history
    drawn = torch.distributions.Beta(torch.tensor(1.2), torch.tensor(2.82)).sample(shape)  # 0.3 in the mean
    shares = least + (most - least) * drawn
    for _ in range(8):
        shares = (shares * mean / shares.mean()).clamp(least, most)
    return (shares * tokens).round().int().clamp(min=1)


def cache_of(config: Any, sizes: Tensor, tokens: int) -> SessionCache:
    """A session's cache of random entries, so many in each head. sizes (layers, G)"""
    cache, width = SessionCache(config.num_hidden_layers), config.head_dim
    at = torch.arange(tokens, dtype=torch.int32, device=DEVICE)
    worth, memory = at.float(), []
    for layer, counts in zip(cache.layers, sizes.tolist(), strict=True):
        rows = [torch.empty(sum(counts), width, device=DEVICE, dtype=DTYPE).normal_() for _ in range(2)]
        nothing = rows[0].new_empty(1, len(counts), 0, width)
        layer.lazy_initialization(nothing, nothing)
        heads = [of.split(counts) for of in rows]
        memory.append(Memory(*heads, [at[:n] for n in counts], [worth[:n] for n in counts]))
    cache.keep(memory, Lengths(closed=tokens))
    return cache


class Plain:
    """Full context at its best: one tensor for all dialogues, of just the size, read by one call a layer."""

    def __init__(self, config: Any, dialogues: int, tokens: int) -> None:
        shape = (dialogues, config.num_key_value_heads, tokens, config.head_dim)
        self.held = [
            [torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_() for _ in range(2)]
            for _ in range(config.num_hidden_layers)
        ]
        self.last = torch.tensor([tokens - 1], device=DEVICE)
        self.attention: Callable[..., Tensor] = grouped

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        keys, values = self.held[layer]
        keys.index_copy_(2, self.last, key)
        values.index_copy_(2, self.last, value)
        return self.attention(query, keys, values, scale)

    def choose(self, config: Any) -> dict[str, float]:
        """Read by what reads all layers fastest; what each took, in ms. After a while no further way is tried."""
        shape = (len(self.held[0][0]), config.num_attention_heads, 1, config.head_dim)
        query, scale = torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_(), config.head_dim**-0.5
        took: dict[str, float] = {}
        begun = time.perf_counter()
        for name, attention in FULL.items():
            if time.perf_counter() - begun > CHOOSING:  # cuDNN takes seconds to get ready for a shape
                break
            try:
                run = recorded(lambda a=attention: [a(query, *held, scale) for held in self.held])
                run()
                took[name] = 1e3 * statistics.median(seconds(run, 3))
            except Exception as error:
                print(f"  full context, {name}: {str(error).splitlines()[0][:200]}", flush=True)
        best = min(took, key=lambda name: took[name])
        self.attention = FULL[best]
        return {name: round(ms, 3) for name, ms in sorted(took.items(), key=lambda item: item[1])}


def grouped(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=True)


def cudnn(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return grouped(query, keys, values, scale)


def flash_rows(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return masked_attention(query, keys, values, None, scale=scale, softcap=None)


def own_kernel(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    from sonic_kv.cache import kernels

    rows = query.reshape(keys.shape[0] * keys.shape[1], -1, keys.shape[3]).contiguous()
    where = _table(keys.data_ptr(), values.data_ptr(), keys.shape, keys.element_size())
    return kernels.attend(_anchor(), rows, *where, scale=scale, softcap=None, window=None).view(query.shape)


@functools.cache
def _anchor() -> Tensor:
    return torch.empty(ALIGNED, device=DEVICE, dtype=DTYPE)


@functools.cache
def _table(keys: int, values: int, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor, Tensor]:
    dialogues, groups, tokens, width = shape
    heads, anchor = dialogues * groups, _anchor().data_ptr()
    starts = torch.arange(heads, device=DEVICE) * (tokens * width * size // ALIGNED)
    before = torch.full((heads,), tokens - 1, dtype=torch.int32, device=DEVICE)
    return (keys - anchor) // ALIGNED + starts, (values - anchor) // ALIGNED + starts, before


FULL = {"cuDNN": cudnn, "the kernel": own_kernel, "flash, query heads as rows": flash_rows}


def weight_bytes(model: Any) -> int:
    """What a step reads of the weights: all but the embeddings."""
    table = model.get_input_embeddings().weight
    return (
        sum(w.numel() * w.element_size() for w in model.parameters()) - table.numel() * table.element_size()
    )


@torch.no_grad()
def full_row(model: Any, dialogues: int, tokens: int, removed: float) -> dict[str, Any]:
    """Steps over full context."""
    plain = Plain(model.config, dialogues, tokens)
    took = plain.choose(model.config)
    ids = torch.zeros(dialogues, 1, dtype=torch.int64, device=DEVICE)
    positions = torch.full_like(ids, tokens)
    run = recorded(lambda: forward(model, ids, positions, plain)[:, -1])

    def step() -> None:
        best = run().argmax(-1).tolist()
        ids.copy_(torch.tensor(best)[:, None])

    cached = sum(of.numel() * of.element_size() for held in plain.held for of in held)
    return {"read by": took} | step_row(model, step, dialogues, cached, cached)


@torch.no_grad()
def kept_row(model: Any, dialogues: int, tokens: int, removed: float) -> dict[str, Any]:
    """Steps over what a session keeps."""
    sizes = lengths(dialogues, tokens, model.config, removed)
    caches = [cache_of(model.config, of, tokens) for of in sizes]
    graph, best = GraphStep(model) if CUDA else None, [0] * dialogues

    def step() -> None:
        best[:] = batch_step(model, caches, best, graph).argmax(-1).tolist()

    read = 2 * int(sizes.sum()) * model.config.head_dim * DTYPE.itemsize
    found = step_row(model, step, dialogues, read, sum(cache.nbytes for cache in caches))
    return found | {"held GB": sum(cache.nbytes for cache in caches) / 1e9}  # grown meanwhile


def step_row(model: Any, step: Callable[[], None], dialogues: int, read: int, held: int) -> dict[str, Any]:
    for _ in range(3):
        step()
    times = seconds(step)
    median = statistics.median(times)
    return {
        "ms": 1e3 * median, "fastest ms": 1e3 * min(times), "slowest ms": 1e3 * max(times),
        "tokens/s": dialogues / median, "GB/s": (weight_bytes(model) + read) / median / 1e9,
        "read GB": (weight_bytes(model) + read) / 1e9, "held GB": held / 1e9,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0,
    }  # fmt: skip


def fitting(tokens: int, bytes_of_dialogue: float) -> int:
    """How many dialogues fit beside the model."""
    if not CUDA:
        return 8
    torch.cuda.empty_cache()
    return max(int((torch.cuda.mem_get_info()[0] - SPARE_BYTES) / bytes_of_dialogue), 1)


def plan(model: Any, toy: bool) -> list[tuple[float, int, int]]:
    """Rows, the most telling first: what is removed (0: nothing, full context), dialogues, tokens."""
    config = model.config
    long, middle, short = (400, 200, 100) if toy else (32768, 16384, 4096)
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * DTYPE.itemsize
    # room to grow is a sixteenth; position and importance of every entry are kept too
    entry = (1 + 1 / 16) + 8 / (2 * config.head_dim * DTYPE.itemsize)
    most_full, most = fitting(long, token * long), fitting(long, token * long * (1 - REMOVED) * entry)
    rows: list[tuple[float, int, int]] = []
    for batch in (8, 2) if toy else (8, 64, 1, 32):
        for tokens in (long, middle, short):
            rows += [(REMOVED, batch, tokens)] if batch * tokens <= most * long else []
            rows += [(0.0, batch, tokens)] if batch * tokens <= most_full * long else []
        if batch == 8:
            rows += [(0.5, batch, long), (0.9, batch, long)]
    return [*rows, (REMOVED, most - most % 8, long), (0.0, most_full, long)]


def steps(toy: bool, left: Left) -> None:
    """Whole steps."""
    begun = time.perf_counter()
    model = model_of(TOY if toy else SHAPE)
    record("made", seconds=time.perf_counter() - begun, weights_GB=weight_bytes(model) / 1e9)
    for removed, batch, tokens in plan(model, toy):
        while left() > 3 and batch > 0:
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            run = functools.partial(kept_row if removed else full_row, model, batch, tokens, removed)
            about = {"removed": removed, "dialogues": batch, "tokens": tokens}
            found = attempt("step", min(25, left()), run, **about)
            if "OutOfMemory" not in found.get("failed", ""):
                break
            batch -= 8 if batch > 8 and removed else 1  # the largest batch was taken too large
    summary()


def summary() -> None:
    """Full context beside what is kept, where both were timed."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    timed = [row for row in rows if row["row"] == "step" and "ms" in row]
    full = {(row["dialogues"], row["tokens"]): row for row in timed if not row["removed"]}
    for row in timed:
        other = full.get((row["dialogues"], row["tokens"]))
        if row["removed"] and other:
            about = {key: row[key] for key in ("removed", "dialogues", "tokens")}
            record("ratio", **about, ms=row["ms"], full_ms=other["ms"], ratio=row["ms"] / other["ms"])
    for tokens in sorted({row["tokens"] for row in timed}):
        rates = {
            removed: [r["tokens/s"] for r in timed if (r["removed"], r["tokens"]) == (removed, tokens)]
            for removed in (0.0, REMOVED)
        }
        if all(rates.values()):
            best, kept = max(rates[0.0]), max(rates[REMOVED])
            record("most tokens/s", tokens=tokens, full=best, sonic=kept, ratio=kept / best)


# --- dialogues and training ----------------------------------------------------------------------


@functools.cache
def shaped(shape: Shape | None) -> tuple[SonicModel, str]:
    """A model of a shape, its steps recorded; None: the tiny model, as it is."""
    if shape is None:
        return model_or_shape(None, 0, ModelOptions(model="tiny"))
    return model_or_shape(shape, 0, ModelOptions(device=DEVICE, dtype="bfloat16"), compiled=CUDA)


def dialogue(toy: bool, left: Left) -> None:
    """Turns of 192 and 64 tokens, of which some are timed: one dialogue at a time, several, and the same again."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # of full context either: it gets ready anew for every length
    alone = BenchDialogueOptions(
        lengths=(512,) if toy else (4096, 8192), user_tokens=(192,), reply_tokens=(64,),
        methods=("full", "re-prefilled", "sonic"), ratios=(REMOVED,), timed=1 if toy else 2, repetitions=1,
    )  # fmt: skip
    last, both = alone.lengths[-1:], ("full", "sonic")
    many = replace(alone, lengths=last, batch=(2 if toy else 16,), methods=both, timed=1)
    large, small = (None, None) if toy else ("llama-8b", "smollm2-135m")
    kinds = [(large, alone), (large, many)] if toy else [(large, alone), (small, alone), (large, many)]
    for seed in range(1 if toy else 3):
        for shape, options in kinds:
            if left() > 4:
                played(shape, replace(options, seed=seed), left)


def played(shape: Shape | None, options: BenchDialogueOptions, left: Left) -> None:
    """Dialogues of one kind."""
    about = {"shape": shape, "batch": options.batch[0], "seed": options.seed}

    def run() -> dict[str, Any]:
        for result in dialogues.measure(*shaped(shape), options):
            for row in dialogues.rows(result):
                record("dialogue", **about, **{k: getattr(v, "value", v) for k, v in vars(row).items()})
        return {}

    attempt("dialogue played", left(), run, **about)


def training_step(toy: bool, repetitions: int) -> dict[str, Any]:
    """Time it. A list of figures would be lost if the last one failed: each is recorded when it is known."""
    toy_size = {"batch_size": 1, "exchanges": 4} if toy else {}
    options = BenchTrainingOptions(repetitions=repetitions, **toy_size)
    for found in training.measure(shaped(None if toy else "smollm2-135m")[0], options):
        record("training", **vars(found), repetitions=repetitions)
    return {}


def learn(toy: bool, left: Left) -> None:
    """One pass and segment by segment."""
    attempt("trained", left(), lambda: training_step(toy, 2 if toy else 10))


def ready(toy: bool) -> None:
    """Compile what training needs: it takes a while."""
    if not toy:
        attempt("training compiled", PREPARING, lambda: training_step(toy, 2))


RUN: dict[str, Callable[[bool, Left], None]] = {
    "tests": tests, "steps": steps, "dialogue": dialogue, "training": learn,
}  # fmt: skip


# --- stages --------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What it is measured on."""
    names = ("torch", "transformers", "triton") if CUDA else ("torch", "transformers")
    found = {name: importlib.import_module(name).__version__ for name in names}
    return found | ({"device": torch.cuda.get_device_name()} if CUDA else {})


def stage(name: str, toy: bool) -> None:
    """One stage: get ready, wait for its turn, of which a line says when it ends, and run."""
    if name == "training":
        ready(toy)
    until = float(sys.stdin.readline() or 0)
    if until:
        RUN[name](toy, lambda: until - time.time())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help="without any: all, in this order")
    parser.add_argument("--toy", action="store_true", help="tiny shapes, to rehearse on a CPU")
    parser.add_argument("--seconds", type=float, default=150, help="for everything")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        stage(given.stage, given.toy or not CUDA)
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text("")
    record("machine", **machine())
    end, names = time.time() + given.seconds, given.stages or list(STAGES)
    toy = ["--toy"] if given.toy or not CUDA else []
    going = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--stage", name, *toy], stdin=subprocess.PIPE, text=True
        )
        for name in names
    }
    for name, process in going.items():
        begun = time.time()
        until = end if len(names) == 1 else min(begun + STAGES[name], end)
        try:
            process.communicate(f"{until}\n", timeout=max(until - begun + 3, 0.1))
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill()
            process.wait()
        record("stage", stage=name, seconds=time.time() - begun, code=process.returncode)


if __name__ == "__main__":
    main()
