"""A decode step on a GPU: full context, and a memory of which every KV head has its own number of entries.

    python recipes/gpu/decode.py                 some 150 seconds on a CUDA device
    python recipes/gpu/decode.py --toy           the same at toy size on a CPU: a rehearsal

An 8B model of random weights in bf16; caches hold random entries. Three stages, each a process of its own, so that
none that fails takes the others along: what each way to read gives beside attention in float32 (`check`), how long
it takes on one layer (`layer`), whole steps of the model (`model`), the most telling ones first. Rows are printed and
appended at once to decode.jsonl, in $OUT if that is set.
"""

import argparse
import functools
import gc
import importlib.util
import inspect
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sonic_kv.cache.attention import attend_heads, masked_attention
from sonic_kv.cache.cache import Lengths, SessionCache
from sonic_kv.cache.growing import ALIGNED
from sonic_kv.cache.layers import Memory
from sonic_kv.model.attention import twin
from sonic_kv.model.batch import batch_step
from sonic_kv.model.forward import forward
from sonic_kv.model.graph import GraphStep
from sonic_kv.model.reader import Held
from sonic_kv.model.shapes import KNOWN

REMOVED, LEAST, MOST = 0.8, 0.03, 0.6  # of the history; what a head keeps of it
CUDA = torch.cuda.is_available()
STEPS, SPARE_BYTES = 20 if CUDA else 3, 3 << 30
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
SHAPE = KNOWN["meta-llama/Llama-3.1-8B-Instruct"] | {"model_type": "llama"}
TOY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 96, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


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
    """Record what `run` finds, or why it found nothing; what it found."""
    try:
        with limit(seconds):
            row |= run()
    except (Exception, TooLong) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        row["failed"] = f"{type(error).__name__}: {lines[0][:300]}"
    record(kind, **row)
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
    return row


# --- ways to read one layer ----------------------------------------------------------------------
# Each takes queries (N, R, D), keys and values (rows, D) in which head after head stands with room behind its entries,
# where heads start and how many entries they have, and gives (N, R, D).


class Layer:
    """One layer's heads of all dialogues."""

    def __init__(self, sizes: Sequence[int], rows: int, width: int, room: int = 16) -> None:
        self.sizes, self.room = list(sizes), room
        edges = [0]
        for size in sizes:
            edges.append(edges[-1] + size + room)
        self.starts, total = edges[:-1], edges[-1]
        self.keys, self.values = (
            torch.empty(total, width, device=DEVICE, dtype=DTYPE).normal_() for _ in range(2)
        )
        self.query = torch.empty(len(sizes), rows, width, device=DEVICE, dtype=DTYPE).normal_()
        self.edges = torch.tensor(edges, dtype=torch.int32, device=DEVICE)
        self.used = torch.tensor(self.sizes, dtype=torch.int32, device=DEVICE)
        self.each = torch.arange(len(sizes) + 1, dtype=torch.int32, device=DEVICE)
        self.scale = width**-0.5
        self.nbytes = 2 * sum(sizes) * width * self.keys.element_size()

    def heads(self) -> list[list[Tensor]]:
        spans = [slice(start, start + n) for start, n in zip(self.starts, self.sizes, strict=True)]
        return [[of[span] for span in spans] for of in (self.keys, self.values)]

    def exact(self) -> Tensor:
        """Attention in float32."""
        found = [
            torch.softmax(q.float() @ k.float().T * self.scale, -1) @ v.float()
            for q, k, v in zip(self.query, *self.heads(), strict=True)
        ]
        return torch.stack(found)


def by_head(layer: Layer) -> Callable[[], Tensor]:
    """A call a head, as without these kernels."""
    keys, values = ([of[None, None] for of in held] for held in layer.heads())
    query = layer.query.flatten(0, 1)[None, :, None]
    return lambda: attend_heads(query, keys, values, None, scale=layer.scale, softcap=None).view(
        layer.query.shape
    )


def varlen(layer: Layer) -> Callable[[], Tensor]:
    """PyTorch's attention over sequences of different lengths: every head is one."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters  # 2.11 does not ask for `enable_gqa`
    options = {"scale": layer.scale, "enable_gqa": True, "seqused_k": layer.used}
    options = {name: value for name, value in options.items() if name in known}
    keys, values, longest = layer.keys[:, None], layer.values[:, None], max(layer.sizes)
    return lambda: varlen_attn(layer.query, keys, values, layer.each, layer.edges, 1, longest, **options)


def varlen_operation(layer: Layer) -> Callable[[], Tensor]:
    """What `varlen_attn` calls, for versions of PyTorch in which it takes less."""
    keys, values, longest = layer.keys[:, None], layer.values[:, None], max(layer.sizes)
    return lambda: torch.ops.aten._flash_attention_forward(
        layer.query, keys, values, layer.each, layer.edges, 1, longest, 0.0, False, False,
        scale=layer.scale, seqused_k=layer.used,
    )[0]  # fmt: skip


def padded(layer: Layer) -> Callable[[], Tensor]:
    """One call over heads that are filled up to the longest, under a mask."""
    longest, (keys, values) = max(layer.sizes), layer.heads()
    filled = [
        torch.nn.utils.rnn.pad_sequence(held, batch_first=True)[:, None] for held in (keys, values)
    ]  # (N, 1, S, D)
    mask = (torch.arange(longest, device=DEVICE) < layer.used[:, None])[:, None, None]
    return lambda: scaled_dot_product_attention(
        layer.query[:, None], *filled, attn_mask=mask, scale=layer.scale
    )[:, 0]


def kernel(layer: Layer, **options: Any) -> Callable[[], Tensor]:
    """The package's own kernel, where the last entry counts as the new one."""
    from sonic_kv.cache import kernels

    anchor = layer.keys.new_empty(ALIGNED)
    starts = torch.tensor(layer.starts, device=DEVICE)
    entry = layer.keys.stride(0) * layer.keys.element_size()
    at = [
        (of.data_ptr() - anchor.data_ptr() + starts * entry) // ALIGNED for of in (layer.keys, layer.values)
    ]
    before, options = layer.used - 1, {"softcap": None, "window": None} | options
    return lambda: kernels.attend(anchor, layer.query, *at, before, scale=layer.scale, **options)


READERS = {
    "kernel": kernel, "varlen": varlen, "varlen operation": varlen_operation, "padded": padded, "by head": by_head,
}  # fmt: skip


def check() -> None:
    """Each way beside float32, on a few short heads; steps of a small model, recorded, beside its own."""
    layer = Layer([70, 3, 200, 64, 129, 1000], 4, 128 if CUDA else 16)
    expected = layer.exact()
    for name, way in reversed(READERS.items()):  # the kernel last: it could break the process

        def apart(way: Any = way) -> dict[str, Any]:
            worst = float((way(layer)().float() - expected).abs().max())
            return {"worst": worst, "right": worst < (0.04 if CUDA else 1e-4)}

        attempt("check", 60, apart, way=name)
    attempt("check", 60, check_steps, way="recorded steps")


def check_steps() -> dict[str, Any]:
    """Logits of steps in which buffers grow and dialogues come and go, recorded and head by head."""
    base = model_of(TOY | {"num_hidden_layers": 3, "head_dim": 64})
    shares = lengths(3, 300, base.config)
    caches = [cache_of(base.config, shares[at], 300) for at in range(3)]
    alone = [cache.fork() for cache in caches]
    worst, graph = 0.0, GraphStep(base) if CUDA else None
    for token in range(60 if CUDA else 3):
        count = 1 + token // 5 % 3
        ids = list(range(token, token + count))
        found = batch_step(base, caches[:count], ids, graph)
        expected = torch.cat([by_heads_step(base, [alone[at]], [ids[at]]) for at in range(count)])
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return {"worst": worst, "right": worst < 0.05}


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


def layers(toy: bool, left: Callable[[], float]) -> None:
    """One layer of an 8B model, recorded: each way to read it, and ways to divide the kernel's work."""
    tokens, batch, full = (400, 4, 2) if toy else (32768, 64, 12)
    config = CONFIG_MAPPING["llama"](
        **{k: v for k, v in (TOY if toy else SHAPE).items() if k != "model_type"}
    )
    groups, width = config.num_key_value_heads, config.head_dim
    rows = config.num_attention_heads // groups
    uneven = [int(n) for n in lengths(batch, tokens, config)[:, 0].flatten()]
    ways = {name: way for name, way in READERS.items() if right(name)}

    def timed(layer: Layer, way: Any, **options: Any) -> dict[str, Any]:
        run = recorded(way(layer, **options))
        run()
        median = statistics.median(seconds(lambda: [run() for _ in range(5)])) / 5
        return {"ms": 1e3 * median, "GB/s": layer.nbytes / median / 1e9}

    for name, sizes in (("heads of different lengths", uneven), ("full context", [tokens] * (full * groups))):
        layer = Layer(sizes, rows, width)
        for way in ways:
            if left() > 0 and not (way == "by head" and name == "full context"):
                about = {"what": name, "dialogues": len(sizes) // groups, "tokens": tokens, "way": way}
                attempt("layer", 15, lambda layer=layer, way=way: timed(layer, ways[way]), **about)
        if "kernel" in ways and name != "full context" and not toy:
            for parts, block, warps, stages in TRIED:
                options = {"parts": parts, "block": block, "warps": warps, "stages": stages}
                if left() > 0:
                    attempt("kernel", 10, lambda o=options, layer=layer: timed(layer, kernel, **o), **options)
        del layer


TRIED = [
    (16, 64, 4, 3), (4, 64, 4, 3), (8, 64, 4, 3), (32, 64, 4, 3), (16, 64, 4, 2), (16, 128, 4, 2), (16, 128, 8, 2),
    (16, 64, 4, 4), (16, 32, 4, 4), (16, 128, 8, 3),
]  # fmt: skip


# --- the model -----------------------------------------------------------------------------------


def model_of(shape: dict[str, Any]) -> Any:
    """The twin of a base with random weights, made where it is to be."""
    options = {"max_position_embeddings": 1 << 17, "bos_token_id": 0, "eos_token_id": 1}
    config = CONFIG_MAPPING["llama"](**{k: v for k, v in shape.items() if k != "model_type"} | options)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return twin(AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval())


def lengths(dialogues: int, tokens: int, config: Any) -> Tensor:
    """Entries of every head, (dialogues, layers, G): few heads keep much, and in the mean it is the budget."""
    torch.manual_seed(1)
    shape = (dialogues, config.num_hidden_layers, config.num_key_value_heads)
    # Beta(1.2, 2.8), of which the mean is 0.3: 3 % to 60 %, in the mean 20 %
    drawn = torch.distributions.Beta(torch.tensor(1.2), torch.tensor(2.82)).sample(shape)
    shares = LEAST + (MOST - LEAST) * drawn
    for _ in range(8):
        shares = (shares * (1 - REMOVED) / shares.mean()).clamp(LEAST, MOST)
    return (shares * tokens).round().int().clamp(min=1)


def cache_of(config: Any, sizes: Tensor, tokens: int) -> SessionCache:
    """A session's cache of random entries, so many in each head. sizes (layers, G)"""
    cache, width = SessionCache(config.num_hidden_layers), config.head_dim
    memory = []
    for layer, counts in zip(cache.layers, sizes.tolist(), strict=True):
        rows = [torch.empty(sum(counts), width, device=DEVICE, dtype=DTYPE).normal_() for _ in range(2)]
        nothing = rows[0].new_empty(1, len(counts), 0, width)
        layer.lazy_initialization(nothing, nothing)
        at = [torch.arange(n, dtype=torch.int32, device=DEVICE) for n in counts]
        memory.append(Memory(rows[0].split(counts), rows[1].split(counts), at, [a.float() for a in at]))
    cache.keep(memory, Lengths(closed=tokens))
    return cache


@torch.no_grad()
def by_heads_step(model: Any, caches: Sequence[SessionCache], ids: Sequence[int]) -> Tensor:
    """A step as it is without these kernels."""
    positions = torch.tensor([cache.next_position for cache in caches], device=DEVICE)[:, None]
    reader = Held(caches, 1, model.dtype, torch.device(DEVICE))
    return forward(model, torch.tensor(ids, device=DEVICE)[:, None], positions, reader)[:, -1]


class Plain:
    """Full context at its best: one tensor for all dialogues, of just the size, read by one call a layer."""

    chosen: ClassVar[list[str]] = []  # what read fastest, row after row

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
        """Read by what reads all layers fastest; what each took, in ms."""
        shape = (len(self.held[0][0]), config.num_attention_heads, 1, config.head_dim)
        query, scale = torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_(), config.head_dim**-0.5
        took: dict[str, float] = {}
        for name, attention in FULL.items():
            if name == "cuDNN" and len(self.chosen) > 1 and name not in self.chosen:
                continue  # it takes seconds to get ready for a shape
            try:
                run = recorded(lambda a=attention: [a(query, *held, scale) for held in self.held])
                run()
                took[name] = 1e3 * statistics.median(seconds(run, 3))
            except Exception as error:
                print(f"  full context, {name}: {str(error).splitlines()[0][:200]}", flush=True)
        best = min(took, key=lambda name: took[name])
        self.attention = FULL[best]
        self.chosen.append(best)
        return {name: round(ms, 3) for name, ms in sorted(took.items(), key=lambda item: item[1])}


def grouped(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=True)


def as_rows(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return masked_attention(query, keys, values, None, scale=scale, softcap=None)


def flash(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return grouped(query, keys, values, scale)


def flash_rows(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return as_rows(query, keys, values, scale)


def cudnn(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return grouped(query, keys, values, scale)


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


FULL = {
    "flash, query heads as rows": flash_rows, "flash": flash, "PyTorch's choice": grouped, "cuDNN": cudnn,
    "PyTorch's choice, query heads as rows": as_rows, "the kernel": own_kernel,
}  # fmt: skip


def weight_bytes(model: Any) -> int:
    """What a step reads of the weights: all but the embeddings."""
    table = model.get_input_embeddings().weight
    return (
        sum(w.numel() * w.element_size() for w in model.parameters()) - table.numel() * table.element_size()
    )


@torch.no_grad()
def full_row(model: Any, dialogues: int, tokens: int) -> dict[str, Any]:
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
def sonic_row(model: Any, dialogues: int, tokens: int, way: str) -> dict[str, Any]:
    """Steps over what a session keeps: recorded, with the kernels, or head by head."""
    sizes = lengths(dialogues, tokens, model.config)
    caches = [cache_of(model.config, of, tokens) for of in sizes]
    graph = GraphStep(model) if CUDA and way == "recorded" else None
    best = [0] * dialogues

    def step() -> None:
        by_head = way == "by head"
        logits = by_heads_step(model, caches, best) if by_head else batch_step(model, caches, best, graph)
        best[:] = logits.argmax(-1).tolist()

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


def fitting(model: Any, tokens: int, bytes_of_dialogue: float) -> int:
    """How many dialogues fit beside the model."""
    if not CUDA:
        return 4
    torch.cuda.empty_cache()
    return max(int((torch.cuda.mem_get_info()[0] - SPARE_BYTES) / bytes_of_dialogue), 1)


def plan(model: Any, toy: bool) -> list[tuple[str, int, int, str]]:
    """Rows, the most telling first: what, dialogues, tokens, way."""
    config = model.config
    long, middle, short = (400, 200, 100) if toy else (32768, 16384, 4096)
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * DTYPE.itemsize
    most_full = fitting(model, long, token * long)
    # room to grow is a sixteenth; position and importance of every entry are kept too
    entry = (1 + 1 / 16) + 8 / (2 * config.head_dim * DTYPE.itemsize)
    most = fitting(model, long, token * long * (1 - REMOVED) * entry)
    most -= most % 8 if most > 8 else 0
    ours = "recorded" if right("recorded steps") else "kernels" if right("kernel") else "by head"
    rows = [("sonic", most, long, ours), ("full", most_full, long, "recorded")]
    for tokens, batches in ((long, (1, 8, 32, 64)), (middle, (1, 8, 32, 64)), (short, (1, 8, 32, 64))):
        for batch in batches[:2] if toy else batches:
            rows.append(("sonic", batch, tokens, ours))
            if token * tokens * batch <= token * long * most_full:
                rows.append(("full", batch, tokens, "recorded"))
            if batch == 1 and tokens == long:
                rows += [("sonic", 1, tokens, way) for way in ("kernels", "by head") if way != ours]
            if batch == 8 and tokens == long and ours != "by head":
                rows.append(("sonic", 8, tokens, "by head"))
    return rows


def steps(toy: bool, left: Callable[[], float]) -> None:
    """Whole steps. A row that was begun before and not finished broke the process: it is left out."""
    begun = time.perf_counter()
    model = model_of(TOY if toy else SHAPE)
    record("made", seconds=time.perf_counter() - begun, weights_GB=weight_bytes(model) / 1e9)
    earlier = [json.loads(line) for line in FILE.read_text().splitlines()]
    done = {tuple(row["of"]) for row in earlier if row["row"] == "begun"}
    for row in plan(model, toy):
        if row in done or (left() < 8 and not toy):
            continue
        what, batch, tokens, way = row
        record("begun", of=row)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        about = {"what": what, "dialogues": batch, "tokens": tokens, "way": way}
        run = full_row if what == "full" else lambda *of, way=way: sonic_row(*of, way)
        found = attempt("step", min(30, left()), lambda run=run, b=batch, t=tokens: run(model, b, t), **about)
        while "OutOfMemory" in found.get("failed", "") and batch > 1:  # the largest batch was taken too large
            batch = max(batch - (8 if what == "sonic" and batch > 8 else 1), 1)
            about["dialogues"] = batch
            found = attempt(
                "step", min(30, left()), lambda run=run, b=batch, t=tokens: run(model, b, t), **about
            )


def summary() -> None:
    """Full context beside what is kept, where both were timed."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    timed = [row for row in rows if row["row"] == "step" and "ms" in row]
    full = {(row["dialogues"], row["tokens"]): row for row in timed if row["what"] == "full"}
    for row in timed:
        other = full.get((row["dialogues"], row["tokens"]))
        if row["what"] == "sonic" and other:
            about = {key: row[key] for key in ("dialogues", "tokens", "way")}
            record("ratio", **about, ms=row["ms"], full_ms=other["ms"], ratio=row["ms"] / other["ms"])
    longest = max((row["tokens"] for row in timed), default=0)
    best = {
        what: max(
            (r["tokens/s"] for r in timed if r["what"] == what and r["tokens"] == longest), default=math.nan
        )
        for what in ("full", "sonic")
    }
    record("most tokens/s", tokens=longest, **best, ratio=best["sonic"] / best["full"])


def right(way: str) -> bool:
    """Whether the check of a way succeeded."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    return any(row["row"] == "check" and row["way"] == way and row.get("right") for row in rows)


def machine() -> dict[str, Any]:
    """What it is measured on."""
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if importlib.util.find_spec("triton"):
        found["triton"] = importlib.import_module("triton").__version__
    if CUDA:
        found["device"] = torch.cuda.get_device_name()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="tiny shapes, to rehearse on a CPU")
    parser.add_argument("--seconds", type=float, default=150, help="for everything")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    toy = given.toy or not CUDA
    if given.stage:

        def left() -> float:
            return float(given.until - time.time())

        run = {"check": check, "layer": lambda: layers(toy, left), "model": lambda: steps(toy, left)}
        run[given.stage]()
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text("")
    record("machine", **machine())
    end = time.time() + given.seconds
    if toy:
        check()
        layers(toy, lambda: end - time.time())
    stages = (("check", 0.45), ("layer", 0.35), ("model", 1.0), ("model", 1.0))
    for stage, share in stages[2:] if toy else stages:
        until = time.time() + share * (end - time.time())
        command = [
            sys.executable,
            __file__,
            "--stage",
            stage,
            "--until",
            str(until),
            *(["--toy"] if toy else []),
        ]
        try:
            code = subprocess.run(command, timeout=max(until - time.time() + 5, 1), check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            record("stage failed", stage=stage, code=code)
        elif stage == "model":
            break
    summary()


FILE = Path(os.environ.get("OUT") or Path(__file__).parent / "results") / "decode.jsonl"

if __name__ == "__main__":
    main()
