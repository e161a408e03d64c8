"""`sonic-kv bench closing`: what closing a segment and decoding on a compressed cache cost, as paired ratios.

Both sides of a ratio run in turn, A B A B …, on the same model in the same process, and the ratio is
taken pair by pair: what the machine does meanwhile slows both.
"""

from copy import copy
from dataclasses import asdict

import torch
from transformers import DynamicCache

from sonic_kv.bench.options import BenchClosingOptions
from sonic_kv.bench.report import Report
from sonic_kv.bench.timing import Paired, paired
from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.model.forward import with_cache
from sonic_kv.model.model import SonicModel
from sonic_kv.text import table


@torch.no_grad()
def measure(model: SonicModel, options: BenchClosingOptions) -> list[Paired]:
    """Closing against prefilling as many tokens as entries are kept of it; decoding against a plain cache."""
    generator = torch.Generator().manual_seed(options.seed)
    ids = torch.randint(
        model.config.vocab_size, (options.history + options.segment,), generator=generator
    ).tolist()
    budget, compressor = Budget(compression_ratio=options.ratio), Compressor(model, SessionConfig())
    cache = _session(compressor, budget, ids[: options.history], options.segment)
    segment = ids[-options.segment :]
    open_cache = cache.fork()
    model.feed(open_cache, segment)

    def close() -> SessionCache:
        closed = open_cache.fork()
        compressor.close(closed, ids[: closed.logical_length], budget)
        return closed

    newest = close().layers
    start = cache.logical_length  # where the segment starts: what of it is kept has later positions
    nexus = round(
        sum(float((layer.positions >= start).sum(-1).float().mean()) for layer in newest) / len(newest)
    )

    filled, shape = DynamicCache(), (1, model.num_heads, cache.stored, model.head_dim)
    for number in range(model.num_layers):
        filled.update(*(torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2)), number)

    def plain() -> DynamicCache:
        store = DynamicCache()  # shares tensors, as a fork does: copying them is no part of decoding
        store.layers = [copy(layer) for layer in filled.layers]
        return store

    return [
        paired(
            f"closing {options.segment} tokens / prefilling the {nexus} entries kept of them",
            close,
            lambda: model.feed(cache.fork(), segment[: max(nexus, 1)]),
            options.repetitions,
        ),
        paired(
            f"closing {options.segment} tokens / prefilling them",
            close,
            lambda: model.feed(cache.fork(), segment),
            options.repetitions,
        ),
        paired(
            f"{options.steps} decode steps on {cache.stored} entries / plain cache of as many",
            lambda: _decode(model, cache.fork(), ids[: options.steps], options.history),
            lambda: _decode(model, plain(), ids[: options.steps], options.history),
            options.repetitions,
        ),
    ]


def _decode(
    model: SonicModel, store: SessionCache | DynamicCache, token_ids: list[int], position: int
) -> None:
    """Feed tokens one by one; a plain cache's stand at `position` and behind it."""
    for number, token in enumerate(token_ids):
        if isinstance(store, SessionCache):
            model.feed(store, [token])
            continue
        model.plain(
            input_ids=torch.tensor([[token]], device=model.device),
            position_ids=torch.tensor([[position + number]], device=model.device),
            **with_cache(model.plain, store),
        )


def _session(compressor: Compressor, budget: Budget, ids: list[int], segment: int) -> SessionCache:
    """A cache of which all is closed, `segment` tokens at a time, but the prefix."""
    model = compressor.model
    cache = model.new_cache()
    model.feed(cache, ids[:4])
    cache.mark_prefix()
    for start in range(4, len(ids), segment):
        piece = ids[start : start + segment]
        model.feed(cache, piece)
        compressor.close(cache, ids[: start + len(piece)], budget)
    return cache


def report(results: list[Paired]) -> Report:
    """The results as a table."""
    rows = [
        [r.name, f"{r.ms:.1f}", f"{r.baseline_ms:.1f}", f"{r.ratio:.2f} ({r.low:.2f}–{r.high:.2f})"]
        for r in results
    ]
    text = table(["A / B", "A ms", "B ms", "A/B (quartiles)"], rows)
    return Report(text, [asdict(result) for result in results])
