"""`sonic-kv bench training`: the one-pass training forward against compressing segment by segment.

Both run forward and backward over the same dialogues, segments, Nexus tokens and kept entries, and give the same
logits and gradients.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import DynamicCache

from sonic_kv.bench.options import BenchTrainingOptions
from sonic_kv.bench.timing import Paired, paired
from sonic_kv.cache.attention import masked_attention
from sonic_kv.data.mixture import synthetic
from sonic_kv.data.options import SynthConfig
from sonic_kv.model.adapter import Adapter, nexus_rows
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.forward import forward
from sonic_kv.model.layout import Layout, own_segment, pack
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.training.options import PlanConfig
from sonic_kv.training.plan import Plan, draw_ends, draw_plan


@dataclass
class _Masked:
    """Rows that see of a cache's entries what a mask shows them. (1, 1, T, S) bool"""

    mask: Tensor

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        return masked_attention(query, key, value, self.mask, scale=scale, softcap=softcap)


def segment_by_segment(model: SonicModel, ids: Tensor, layout: Layout, lifetime: Sequence[Tensor]) -> Tensor:
    """What `SonicModel.one_pass` computes, one forward a segment over a cache that keeps its graph.

    Args:
        ids: of one dialogue (1, length)
        layout: its rows, original positions (1, T)
        lifetime: per layer; every head holds as many entries as the others at any time. (1, G, T)

    Returns:
        logits of all rows (1, T, V)
    """
    assert model.adapter is not None
    embeddings = model.embed(ids, layout)
    heads, last = lifetime[0].shape[1], int(layout.segment.max())
    columns = [
        torch.empty(heads, 0, dtype=torch.long, device=ids.device) for _ in lifetime
    ]  # in memory (G, S)
    keys = [embeddings.new_empty(1, heads, 0, model.head_dim) for _ in lifetime]
    values, logits = list(keys), []
    for number in range(last + 1):
        rows = (layout.segment[0] == number).nonzero()[:, 0]
        part = Layout(**{name: tensor[:, rows] for name, tensor in vars(layout).items()})
        remembered = keys[0].shape[2]
        own = torch.nn.functional.pad(own_segment(part), (remembered, 0), value=True)
        cache = DynamicCache()
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            cache.update(k, v, layer)
        with nexus_rows(part.nexus):
            reader = _Masked(own[:, None])
            logits.append(
                forward(model.adapter.twin, embeddings[:, rows], part.position, reader, cache=cache)
            )
        for layer, alive in enumerate(lifetime):
            seen = torch.cat((columns[layer], rows.expand(heads, -1)), -1)
            kept = alive[0].gather(-1, seen) > number
            slots = kept.nonzero()[:, 1].view(heads, -1)  # (G, S)
            columns[layer] = seen.gather(-1, slots)
            at = slots[None, :, :, None].expand(-1, -1, -1, model.head_dim)
            keys[layer] = cache.layers[layer].keys.gather(2, at)
            values[layer] = cache.layers[layer].values.gather(2, at)
    return torch.cat(logits, 1)


def draw(
    model: SonicModel, adapter: Adapter, encoded: Encoded, plans: PlanConfig, rng: random.Random
) -> Plan:
    """A plan as training draws it, with random importance in place of the teacher's."""
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    shape = (1, model.num_heads, len(encoded.token_ids))
    scores = [torch.randn(shape, generator=generator).to(model.device) for _ in range(model.num_layers)]
    return draw_plan(adapter, scores, encoded, draw_ends(encoded, plans, rng), plans, rng)


def measure(model: SonicModel, options: BenchTrainingOptions) -> Iterator[Paired]:
    """One step's dialogues, forward and backward, both ways in turn. For all at once on a GPU: with FlexAttention, as
    training has it there."""
    model.base.requires_grad_(False)
    model.adapter = adapter = Adapter(model.base, AdapterConfig(lora_rank=options.lora_rank))
    # segment by segment, heads stand side by side: each must have as many entries
    rng, plans = random.Random(options.seed), PlanConfig(shared_share=0.0)
    synth = SynthConfig(seed=options.seed, min_exchanges=options.exchanges, max_exchanges=options.exchanges)
    dialogues = list(islice(synthetic(model.format, synth, model.max_length), options.batch_size))
    drawn = [draw(model, adapter, encoded, plans, rng) for encoded in dialogues]
    ids = [torch.tensor([encoded.token_ids], device=model.device) for encoded in dialogues]
    singles = [(p.layout.to(model.device), [life.to(model.device) for life in p.lifetime]) for p in drawn]
    packed, lifetime = pack([layout for layout, _ in singles], [life for _, life in singles])

    def learn(logits: Tensor, share: float = 1.0) -> None:
        (logits.logsumexp(-1).mean() * share).backward()

    def all_at_once() -> None:
        learn(model.one_pass(torch.cat(ids, 1), packed, lifetime, flex=model.device.type == "cuda"))

    def one_pass() -> None:
        for tokens, (layout, life) in zip(ids, singles, strict=True):
            learn(model.one_pass(tokens, layout, life), 1 / len(ids))

    def stepwise() -> None:
        for tokens, (layout, life) in zip(ids, singles, strict=True):
            learn(segment_by_segment(model, tokens, layout, life), 1 / len(ids))

    tokens, segments = sum(map(torch.numel, ids)), sum(len(p.ends) + 1 for p in drawn)
    name = f"{len(ids)} dialogues, {tokens} tokens, {segments} segments: segment by segment / one pass"
    yield paired(f"{name} each", stepwise, one_pass, options.repetitions)
    yield paired(f"{name} for all", stepwise, all_at_once, options.repetitions)
