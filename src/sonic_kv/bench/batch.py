"""`sonic-kv bench batch`: decoding many dialogues at once, and how many of them fit.

The caches are filled with random entries, as many as a method keeps of the dialogue: nothing has to be read
first, so that 32,000 tokens a row cost no more than the steps that are timed.
"""

import statistics
from dataclasses import asdict, dataclass

import torch

from sonic_kv import __version__
from sonic_kv.bench.options import BenchBatchOptions
from sonic_kv.bench.report import Report, on
from sonic_kv.bench.timing import Machine, decode_bound, measure_machine, seconds
from sonic_kv.model.batch import batch_step
from sonic_kv.model.model import SonicModel
from sonic_kv.text import Progress, bytes_text, table


@dataclass(frozen=True)
class Step:
    """One compression ratio at one batch size; times are of a decode step, over all rows."""

    ratio: float
    batch: int
    entries: int  # of each row
    ms: float  # median
    tokens_per_second: float
    of_bound: float
    cache_bytes: int


@dataclass(frozen=True)
class Result:
    """Every batch that fitted, and the first that did not (None: none was tried that large)."""

    model: str
    machine: Machine
    options: BenchBatchOptions
    steps: list[Step]
    too_large: dict[float, int | None]
    version: str = __version__


@torch.no_grad()
def measure(model: SonicModel, name: str, options: BenchBatchOptions) -> Result:
    """Time steps at 1, 2, 4, … rows until memory ends."""
    machine = measure_machine(model)
    steps: list[Step] = []
    too_large: dict[float, int | None] = {}
    bar = Progress("ratio", len(options.ratios))
    for ratio in options.ratios:
        entries = max(round((1 - ratio) * options.length), 1)
        batch, too_large[ratio] = 1, None
        while batch <= options.max_batch:
            try:
                steps.append(_time(model, machine, ratio, entries, batch, options))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                too_large[ratio] = batch
                break
            batch *= 2
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        bar.add()
    return Result(name, machine, options, steps, too_large)


def _is_out_of_memory(error: Exception) -> bool:
    # a CPU's allocator has no exception of its own
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _time(
    model: SonicModel, machine: Machine, ratio: float, entries: int, batch: int, options: BenchBatchOptions
) -> Step:
    cache = model.new_cache()
    shape = (1, model.num_heads, entries, model.head_dim)
    for layer in cache.layers:
        layer.update(*(torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2)))
    cache.mark_prefix()
    rows = [cache.fork() for _ in range(batch)]
    tokens = [number % model.config.vocab_size for number in range(batch)]
    batch_step(model.twin, rows, tokens, model.graph)
    times = [seconds(lambda: batch_step(model.twin, rows, tokens, model.graph)) for _ in range(options.steps)]
    step = statistics.median(times)
    bound = decode_bound(model, machine, entries + options.steps / 2, batch)
    return Step(
        ratio, batch, entries, 1e3 * step, batch / step, bound / step, sum(row.nbytes for row in rows)
    )


def report(result: Result) -> Report:
    """The figures as a table, and how many rows fit."""
    found = [
        [
            f"{step.ratio:g}", str(step.batch), str(step.entries), f"{step.ms:.2f}",
            f"{step.tokens_per_second:.0f}", f"{step.of_bound:.2f}", bytes_text(step.cache_bytes),
        ]
        for step in result.steps
    ]  # fmt: skip
    head = ["removed", "rows", "entries a row", "step, ms", "tokens/s", "of bound", "caches"]
    lines = [
        f"{result.model}: {result.options.length} tokens a row; {on(result.machine)}",
        "",
        table(head, found),
        "",
    ]
    for ratio, batch in result.too_large.items():
        fits = [step.batch for step in result.steps if step.ratio == ratio]
        limit = "as far as was tried" if batch is None else f"{batch} do not"
        lines.append(f"{ratio:g} removed: {max(fits, default=0)} rows fit, {limit}")
    return Report("\n".join(lines), asdict(result))
