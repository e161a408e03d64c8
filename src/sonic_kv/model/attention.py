"""The registered attention function: per-layer visibility, observed queries, compact positions.

This module, `cache` and `adapter` are the only ones that touch the internals of transformers and
PEFT. The function is used inside `sonic_attention(...)` only; decoding runs on the base model's own
attention.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel

from sonic_kv.cache.attention import masked_attention
from sonic_kv.errors import NumericalError, UnsupportedModelError
from sonic_kv.model.layout import PREFIX, Layout, blocks, columns_of, mask_mod, visible

NAME = "sonic_kv"
ATTENTION_LAYERS = (None, "full_attention", "sliding_attention")
BLOCK_ROWS = 128  # of a one-pass forward that read together, or more
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class Rope:
    """Rotations of stored keys, with the model's own frequencies.

    Rotations compose: a key encoded at position p becomes one at position p + d by rotating it by
    d. The attention scaling that some variants put into cos and sin is already in the key.

    Raises:
        UnsupportedModelError: the model has no rotary embedding, or one that depends on the length.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        config = base.config.get_text_config()
        rotary = next((m for m in base.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
        if rotary is None:
            raise UnsupportedModelError(
                f"{type(base).__name__} has no rotary position embedding (RoPE): its keys cannot be moved"
            )
        layer_types = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
        self._inv_freq: list[Tensor] = []
        for layer_type in layer_types[: config.num_hidden_layers]:
            if layer_type not in ATTENTION_LAYERS:
                raise UnsupportedModelError(
                    f"a layer of type {layer_type!r} does not keep every token's key and value: "
                    f"{type(base).__name__} has no cache that could be compressed"
                )
            rope_type = getattr(rotary, "rope_type", "default")
            if isinstance(rope_type, dict):
                rope_type = rope_type[layer_type]
            if rope_type not in STATIC_ROPE:
                raise UnsupportedModelError(
                    f"rope type {rope_type!r} changes with the length of the input: stored keys would go stale; "
                    f"supported are {', '.join(STATIC_ROPE)}"
                )
            inv_freq = getattr(rotary, f"{layer_type}_inv_freq", None)
            self._inv_freq.append(rotary.inv_freq if inv_freq is None else inv_freq)

    def rotate(self, layer: int, keys: Tensor, shift: Tensor) -> Tensor:
        """Move keys by `shift` positions, rotated in fp32.

        Args:
            keys: (..., S, D)
            shift: positions, broadcastable to (..., S)
        """
        # angles in fp64, where the device has it: repeated rotations must not drift
        exact = torch.float32 if keys.device.type == "mps" else torch.float64
        inv_freq = self._inv_freq[layer].to(device=keys.device, dtype=exact)
        width = 2 * inv_freq.shape[0]  # partial rotary embeddings turn the first `width` of D only
        angle = shift.to(keys.device, exact)[..., None] * inv_freq
        cos, sin = angle.cos().float(), angle.sin().float()
        x, y = keys[..., : width // 2].float(), keys[..., width // 2 : width].float()
        turned = torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1).to(keys.dtype)
        return turned if width == keys.shape[-1] else torch.cat((turned, keys[..., width:]), dim=-1)


@dataclass
class Probe:
    """Records what chosen query rows attend to, without ever holding a whole map.

    `seen[layer]` is (B, G, R, Q, S): probabilities of the R query heads of each KV head, for the Q
    chosen rows, over all S columns; `outputs[layer]` is what they read there, (B, G, R, Q, D).
    """

    rows: Tensor  # (B, Q) row numbers
    layers: Collection[int] | None = None  # None: all
    seen: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor,
        *,
        scale: float,
        softcap: float | None,
    ) -> None:
        """Record a layer. `allowed`: what the chosen rows see. (B, 1 or G, Q, S) bool"""
        heads, groups = query.shape[1], key.shape[1]
        at = self.rows[:, None, :, None].expand(-1, heads, -1, query.shape[-1])
        chosen = query.gather(2, at).unflatten(1, (groups, heads // groups))  # (B, G, R, Q, D)
        logits = torch.einsum("bgrqd,bgsd->bgrqs", chosen, key).float() * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        self.seen[layer] = logits.masked_fill(~allowed[:, :, None], -torch.inf).softmax(-1)
        self.outputs[layer] = torch.einsum("bgrqs,bgsd->bgrqd", self.seen[layer], value.float())

    def watches(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers


@dataclass
class OnePass:
    """The attention of a one-pass forward: a block of rows at a time, over the columns that it sees."""

    layout: Layout
    lifetime: Sequence[Tensor]  # per layer, (B, G, T)
    rope: Rope | None = None  # given: compact positions
    flex: bool = False  # FlexAttention over all rows, instead of SDPA in blocks
    probe: Probe | None = None  # of the same rows in every dialogue

    @functools.cached_property
    def _dialogues(self) -> list[tuple[Layout, list[tuple[slice, int, int]]]]:
        """Each dialogue's layout and blocks. With compact positions keys stand where one segment sees them."""
        least = BLOCK_ROWS if self.rope is None else 1
        return [(one, blocks(one, least)) for one in self.layout.dialogues()]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        layer = module.layer_idx
        lifetime = self.lifetime[layer]
        if self.probe is not None and self.probe.watches(layer):
            allowed = visible(self.layout, lifetime, self.probe.rows[0])
            self.probe.observe(layer, query, key, value, allowed, **options)
        if self.flex:
            return block_attention(query, key, value, self.layout, lifetime, **options)
        outputs = []
        for (layout, cut), alive, q, k, v in zip(
            self._dialogues, lifetime.split(1), query.split(1), key.split(1), value.split(1), strict=True
        ):
            parts = []
            for rows, lowest, highest in cut:
                columns = columns_of(layout, alive, lowest, highest)
                keys = k[:, :, columns]
                if self.rope is not None:
                    keys = self._moved(layer, keys, layout, alive, columns, lowest)
                mask = visible(layout, alive, rows, columns)
                parts.append(masked_attention(q[:, :, rows], keys, v[:, :, columns], mask, **options))
            outputs.append(torch.cat(parts, 2))
        return torch.cat(outputs)

    def _moved(
        self, layer: int, keys: Tensor, layout: Layout, lifetime: Tensor, columns: Tensor, number: int
    ) -> Tensor:
        """Keys as a segment's rows see them: those of the memory at consecutive positions behind the prefix."""
        assert self.rope is not None
        segment, index = layout.segment[0, columns], layout.index[0, columns]
        memory = (segment > PREFIX) & (segment < number) & (lifetime[:, :, columns] >= number)  # (1, G, K)
        order = index.argsort().expand_as(memory)  # by transcript: raw and Nexus columns mix
        rank = memory.gather(-1, order).cumsum(-1) - 1
        rank = torch.zeros_like(rank).scatter(-1, order, rank)
        prefix = (segment == PREFIX).sum()
        return self.rope.rotate(
            layer, keys, torch.where(memory, prefix + rank - layout.position[0, columns], 0)
        )


@dataclass
class _Witness:
    """Notes which layers use the registered attention."""

    layers: set[int] = field(default_factory=set)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
    ) -> Tensor:
        self.layers.add(module.layer_idx)
        return masked_attention(query, key, value, mask, **options)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    lifetime: Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """`masked_attention` under `layout.visible`, by FlexAttention: no dense mask, and empty blocks are skipped.

    Compiled on a GPU. On a CPU it is for comparison only: it has no backward pass there.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, heads, length = query.shape[:3]
    rule = mask_mod(layout, lifetime, heads // key.shape[1])
    options: dict[str, Any] = {"device": query.device, "_compile": query.is_cuda}
    mask = create_block_mask(rule, batch, heads, length, length, **options)

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return score if softcap is None else torch.tanh(score / softcap) * softcap

    output: Tensor = _flex(query.is_cuda)(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=mask,
        scale=scale,
        enable_gqa=heads != key.shape[1],
    )
    return output


@functools.cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    *,
    scaling: float,
    softcap: float | None = None,
    sonic: OnePass | _Witness | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it; `sonic` comes through the forward's kwargs."""
    if s_aux is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} has learned attention sinks, which sonic-kv cannot compute"
        )
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap}
    if sonic is None:
        output = masked_attention(query, key, value, attention_mask, **options)
    else:
        output = sonic.attend(module, query, key, value, attention_mask, **options)
    return output.transpose(1, 2).contiguous(), None  # (B, Q, H, D)


@torch.no_grad()
def verify(base: PreTrainedModel, rope: Rope, kv_heads: int, head_dim: int) -> None:
    """Check on four single tokens that this module knows how the model attends and where keys stand.

    A token that is alone attends to itself only, wherever it stands: in every layer its value is the
    same at each position, and its key differs by the rotation and nothing else.

    Raises:
        UnsupportedModelError: another attention, interleaved rotations, ALiBi, layers without positions …
        NumericalError: the keys are NaN.
    """
    name = type(base).__name__
    ids = torch.arange(1, 5, device=base.device)[:, None] * (base.get_input_embeddings().weight.shape[0] // 5)
    here, there, witness = DynamicCache(), DynamicCache(), _Witness()
    base(ids, position_ids=torch.full_like(ids, 5), **with_cache(base, there))
    mask = torch.ones(4, 1, 1, 1, dtype=torch.bool, device=base.device)
    with sonic_attention(base):
        call: dict[str, Any] = {"attention_mask": mask, "sonic": witness, **with_cache(base, here)}
        try:
            base(ids, position_ids=torch.zeros_like(ids), **call)
        except (TypeError, ValueError, RuntimeError, KeyError):
            witness.layers.clear()
    if len(witness.layers) != base.config.get_text_config().num_hidden_layers:
        raise UnsupportedModelError(f"{name} has an attention of its own: transformers cannot exchange it")
    for number, (first, second) in enumerate(zip(here.layers, there.layers, strict=True)):
        if first.keys.isnan().any() or second.values.isnan().any():
            raise NumericalError(f"the weights of {name} hold NaN: load or train it again")
        same = first.keys.shape == first.values.shape == (4, kv_heads, 1, head_dim)
        if not (
            same
            and _close(second.keys, rope.rotate(number, first.keys, torch.tensor(5)))
            and _close(second.values, first.values)
        ):
            raise UnsupportedModelError(
                f"{name} encodes positions in its own way (layer {number}): its stored keys are not rotated half "
                "by half, and could not be moved"
            )


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 16 * torch.finfo(found.dtype).eps * float(expected.abs().max())
    return bool(((found - expected).abs() <= tolerance).all())


def respect_softcap(base: PreTrainedModel) -> None:
    """Run a model with soft-capped attention logits on eager attention: SDPA leaves the cap out.

    transformers up to 5.2 chooses SDPA for such models (Gemma 2) all the same.
    """
    config = base.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        config._attn_implementation = "eager"


def with_cache(base: nn.Module, cache: Cache) -> dict[str, Any]:
    """The arguments by which `base` reads and fills a cache."""
    return {_cache_name(type(base).forward): cache, "use_cache": True}


@functools.cache
def _cache_name(forward: Callable[..., Any]) -> str:
    # transformers 5.24 renamed it
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def no_mask(device: torch.device) -> Tensor:
    """For forwards whose attention knows itself who sees what: without a 4D mask transformers would make one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


@contextmanager
def sonic_attention(base: PreTrainedModel) -> Iterator[None]:
    """Run `base` on the registered attention function; the caller gives every forward a boolean 4D mask."""
    AttentionInterface.register(NAME, _forward)
    config = base.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
