"""Forwards of a base, wherever they come from, over caches that another keeps."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import ConfigError
from sonic_kv.model.forward import cache_name

# Told which cache a forward was given, its tokens, and how many of these it feeds itself: feeds the others, and returns
# what is kept for this cache; None: it was begun elsewhere.
FeedPrompt = Callable[[Cache, list[int], int], SessionCache | None]

_inside: ContextVar[object] = ContextVar("the interception that forwards are in", default=None)


@contextmanager
def intercepted(base: PreTrainedModel, feed: FeedPrompt) -> Iterator[None]:
    """Have `feed` read prompts of the base, and the base go on over the cache that is kept of them.

    It holds where it is entered (`contextvars`): other threads that use the base notice nothing.
    """

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if module is not base or _inside.get() is not before:  # twins have the base's hooks, too
            return None
        token = _inside.set(None)
        try:
            return _over_kept_cache(base, _named(base, args, kwargs), feed)
        finally:
            _inside.reset(token)

    token, handle = _inside.set(before), base.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _inside.reset(token)


def _named(base: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a forward by name."""
    names = list(inspect.signature(type(base).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _over_kept_cache(base: PreTrainedModel, given: dict[str, Any], feed: FeedPrompt) -> Any:
    """Arguments of a forward, but over the kept cache and of the tokens that are still to be fed; None: as they are.

    Raises:
        ConfigError: it has no tokens, several dialogues, padding, or a cache of another kind.
    """
    name = cache_name(base)
    ids, cache = given.get("input_ids"), given.get(name)
    if given.get("use_cache") is False or given.get("labels") is not None or isinstance(cache, SessionCache):
        return None
    if ids is None or len(ids) != 1:
        raise ConfigError(
            "inside sonic() a model reads one dialogue at a time, as input_ids: no batches, no beams"
        )
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and not bool(mask.all()):
        raise ConfigError("inside sonic() a prompt has no padding: leave out what attention_mask hides")
    cache = DynamicCache() if cache is None else cache
    if type(cache) is not DynamicCache:
        raise ConfigError(f"inside sonic() a model needs its default cache, not a {type(cache).__name__}")
    wanted = given.get("logits_to_keep", 1)
    last = min(max(wanted, 1) if isinstance(wanted, int) else 1, ids.shape[1])
    kept = feed(cache, ids[0].tolist(), last)
    if kept is None:
        return None
    kept.lend(cache)
    positions = torch.arange(kept.next_position, kept.next_position + last, device=ids.device)[None]
    given |= {name: cache, "input_ids": ids[:, -last:], "position_ids": positions}
    if given.get("cache_position") is not None:  # before transformers 5.24
        given["cache_position"] = given["cache_position"][-last:]
    return (), given
