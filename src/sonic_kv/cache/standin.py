"""Stand-ins for keys and values of heads of different lengths: what a model's own attention is given.

A model of transformers attends to two tensors, in which all heads hold as many entries. Where a cache has no such
tensors, its layer gives two that have a shape and no numbers, and that answer PyTorch themselves
(`__torch_function__`). Scaled dot-product attention is then done by the layer, head by head and without a copy. In
products of matrices, as "eager" attention has them, shorter heads are filled up, and what was filled up is masked
before the softmax. All else is refused. So the model, its config and its attention stay what they are for everyone.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sonic_kv.cache.growing import UNEVEN, Sizes
from sonic_kv.errors import ModelError

_VIEWS = {
    Tensor.__getitem__,
    Tensor.expand,
    Tensor.reshape,
    Tensor.contiguous,
    Tensor.repeat_interleave,
    torch.repeat_interleave,
    Tensor.transpose,
    torch.transpose,
}
_QUESTIONS = {Tensor.size, Tensor.dim, Tensor.stride, Tensor.is_contiguous, Tensor.__repr__}


class Layer(Protocol):
    """What stand-ins ask of the layer they stand for; a `SessionLayer` has it."""

    sizes: Sizes
    device: torch.device

    @property
    def width(self) -> int: ...

    def padded(self, width: int) -> tuple[Tensor, Tensor]: ...

    def read(self, query: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None) -> Tensor: ...


class StandIn(Tensor):
    """Keys or values of a layer. (1, G, S, D), S of the head that has most in any layer

    Attributes:
        layer: whose they are.
        part: 0 for its keys, 1 for its values.
        fresh: how many entries came last.
    """

    layer: Layer
    part: int
    fresh: int

    @classmethod
    def of(cls, layer: Layer, part: int, newest: Tensor) -> "StandIn":
        """For a layer's keys or values, of which these came last. (1, G, T, D)"""
        shape = (1, newest.shape[1], layer.width, newest.shape[3])
        found = torch.empty(shape, dtype=newest.dtype, device="meta").as_subclass(cls)
        found.layer, found.part, found.fresh = layer, part, newest.shape[2]
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        if func in (Tensor.matmul, torch.matmul, Tensor.__matmul__):
            return _product(*args)
        if func == Tensor.device.__get__:
            return args[0].layer.device
        if not (func in _VIEWS or func in _QUESTIONS or getattr(func, "__name__", "") == "__get__"):
            raise ModelError(UNEVEN)
        found = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if isinstance(found, cls):
            vars(found).update(vars(args[0]))
        return found


class _Logits(Tensor):
    """Logits of heads that were filled up. (1, H, Q, S)

    Attributes:
        absent: what was filled up. (1, H, 1, S) bool
    """

    absent: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.functional.softmax, torch.softmax, Tensor.softmax):
            logits = args[0].as_subclass(Tensor).masked_fill(args[0].absent, -torch.inf)
            return func(logits, *args[1:], **(kwargs or {}))
        found = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if isinstance(found, cls):
            found.absent = next(part.absent for part in args if isinstance(part, cls))
        return found


def _attend(
    query: Tensor,
    key: StandIn,
    value: StandIn,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention over all that a layer holds; the arguments are PyTorch's.

    Args:
        query: (1, H, Q, D); of a single token, the query heads of a KV head may be rows of one head.
    """
    rows = query if key.fresh > 1 else query.reshape(1, -1, 1, query.shape[-1])
    if attn_mask is None and key.fresh > 1:
        causal = torch.ones(key.fresh, key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask = causal.tril(key.shape[-2] - key.fresh)[None, None]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return key.layer.read(rows, attn_mask, scale=scale, softcap=None).reshape(query.shape)


def _product(left: Tensor, right: StandIn) -> Tensor:
    """Logits of queries and transposed keys (1, H, Q, S), or what weights make of values (1, H, Q, D)."""
    layer, heads = right.layer, left.shape[1]
    shared = heads // len(layer.sizes)
    held = layer.padded(layer.width)[right.part].repeat_interleave(shared, 1)
    if right.part:
        return left @ held
    logits = (left @ held.transpose(2, 3)).as_subclass(_Logits)
    columns = torch.arange(layer.width, 0, -1, device=left.device)
    sizes = torch.tensor(layer.sizes, device=left.device).repeat_interleave(shared)
    logits.absent = (columns > sizes[:, None])[None, :, None]
    return logits
