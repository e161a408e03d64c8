"""What one training step holds on a GPU at its peak, by part: predicted from shapes, measured where it is small.

    python memory.py           # the table of README.md: Llama 8B, replicated and on 4 and 8 GPUs
    python memory.py --check   # small steps, run on this CPU: predicted against measured

The prediction counts tensors, for the longest forward that a plan can draw: every token has become a Nexus token
as well. It leaves out workspaces inside kernels, the allocator's slack and NCCL's buffers.
"""

import argparse
import random
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sonic_kv.bench.shapes import SHAPES
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.model.reader import BLOCK_ROWS
from sonic_kv.training import damage, losses
from sonic_kv.training.objectives import MOST_ENDS, MOST_TOKENS, DamageObjective, Run
from sonic_kv.training.options import PlanConfig

FITS = 0.9 * 80e9  # bytes that tensors may fill of a GPU's


@dataclass(frozen=True)
class Step:
    """One dialogue's forward and backward pass, on one process."""

    tokens: int
    shards: int = 1  # processes that a sharded base is spread over; 1: it is whole
    checkpointing: bool = True
    flex: bool = True  # FlexAttention's block mask; else SDPA, a block of rows at a time
    size: int = 2  # bytes of a number: 2 for bf16 weights and autocast, or 4
    segment: int = 128  # tokens of the shortest segments
    rank: int = 16  # of the LoRA; 0: the scorer alone, while it learns damage
    hidden: int = AdapterConfig.scorer_hidden


def predict(c: LlamaConfig, step: Step) -> dict[str, float]:
    """Bytes of a Llama's training step at its peak, by part: of the scorer's steps or of the LoRA's, what is more."""
    found = [scorer_step(c, step), *([lora_step(c, step)] if step.rank else [])]
    return max(found, key=lambda parts: sum(parts.values()))


def always(c: LlamaConfig, step: Step) -> dict[str, float]:
    """What is there before a step begins."""
    layers, wide, ffn, (q, kv) = c.num_hidden_layers, c.hidden_size, c.intermediate_size, widths(c)
    layer = wide * (2 * q + 2 * kv + 3 * ffn)  # weights
    gathered = 2 * layer if step.shards > 1 else 0  # one layer computes while the next one comes
    # embeddings and head are never sharded
    ends = c.vocab_size * wide * (1 if c.tie_word_embeddings else 2)
    lora = layers * step.rank * (7 * wide + 2 * q + 2 * kv + 3 * ffn)
    scorer = layers * (2 * kv + c.num_key_value_heads) * step.hidden
    return {
        "base": step.size * (ends + layers * layer / step.shards + gathered),
        "adapter": 4 * step.size * (lora + scorer),  # weights, gradients, two moments
    }


def widths(c: LlamaConfig) -> tuple[int, int]:
    """Numbers of a token's queries, and of its keys."""
    return c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim


def scorer_step(c: LlamaConfig, step: Step) -> dict[str, float]:
    """Damage: the base's forward and backward over the tokens, then the scores."""
    t, s, layers, wide, ffn = step.tokens, step.size, c.num_hidden_layers, c.hidden_size, c.intermediate_size
    (q, kv), groups = widths(c), c.num_key_value_heads
    entries = s * t * 2 * layers * kv
    sums = 4 * layers * groups * t * min(t / step.segment, MOST_ENDS + 1)
    rows = min(max(damage.WEIGHTS // (c.num_attention_heads * t), 16), damage.MOST_ROWS)
    # with respect to the logits and the labels, of a block of rows; in float32, and in part also in bf16
    block = 3.5 * 4 * rows * c.num_attention_heads * t
    head = 4 * 4 * min(damage.MOST_ROWS, t) * c.vocab_size
    norms = t * wide * 2 * (4 if s == 4 else 2 + 4)
    saved, mlp = (
        norms + t * s * (2 * q + 2 * kv + 3 * ffn),
        t * s * 3 * ffn,
    )  # of a layer, for its backward pass
    inside = max(block - mlp, t * s * 2 * ffn)  # the attention's turn comes when the MLP's is over
    if step.checkpointing:
        kept, within = layers * t * wide * s + entries / 2, max(saved + inside, head)
    else:
        kept, within = layers * saved, max(inside, head)
    name = "vocabulary" if within == head else "one layer"
    backward = {"activations": kept, name: within, "damage": sums}
    # entries in float32 and as they are multiplied, their hidden layer before and after the bend, some numbers each
    n = min(t, MOST_TOKENS)
    scores = n * layers * (2 * kv * (4 + s) + 2 * s * step.hidden) + 8 * 4 * layers * groups * n
    gathering = {"entries": 1.5 * entries, "damage": 2 * sums}
    scoring = {"entries": entries * n / t, "scores": scores, "damage": sums * n / t}
    most = max(backward, gathering, scoring, key=lambda parts: sum(parts.values()))
    return {**always(c, step), **most}


def lora_step(c: LlamaConfig, step: Step) -> dict[str, float]:
    """Teacher, then the compressed forward and backward over twice the tokens."""
    t, s, layers, vocab, wide = step.tokens, step.size, c.num_hidden_layers, c.vocab_size, c.hidden_size
    rows, ffn, heads, groups = 2 * t, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads
    q, kv = widths(c)
    before = {**always(c, step), "teacher": s * t * (vocab + 2 * layers * kv)}
    # What the backward pass of one layer needs. Norms keep their input in float32.
    norms = rows * wide * 2 * (4 if s == 4 else 2 + 4)
    # Of SDPA's blocks: keys and values of the columns that each sees, in the mean, its mask, and its output once more.
    blocks, columns = rows / BLOCK_ROWS, (t + BLOCK_ROWS) / 2
    expanded = rows * s * 2 * q + s * (2 * rows * kv if step.flex else (2 * blocks * columns + rows) * q)
    mask = heads * (blocks**2 * 16 if step.flex else rows * columns * s)
    saved = norms + expanded + mask + rows * s * (4 * ffn + 7 * step.rank)
    booleans = 0 if step.flex else (heads + groups + 2) * BLOCK_ROWS * t  # from which a block's mask is made
    inside = rows * s * 2 * ffn  # gradients inside a layer
    if step.checkpointing:
        kept, within = layers * rows * wide * s, max(mask + booleans, saved + inside)
    else:
        kept, within = layers * saved, max(mask + booleans - saved, inside)
    # The student's logits, their gradients in chunks and then in one piece, and a chunk in float32.
    logits, chunk = s * t * vocab, 6 * 4 * min(t, losses.CHUNK) * vocab
    loss = logits + chunk if t <= losses.CHUNK else max(3 * logits, 2 * logits + chunk)
    name = "loss" if loss > within else "one layer"
    student = {**before, "activations": kept, name: max(loss, within)}
    reading = {**before, "masks": 5 * BLOCK_ROWS * t}  # of a teacher's block
    return max(student, reading, key=lambda parts: sum(parts.values()))


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and nobody has freed, but for those `known` before."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(output) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return output

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def measure(config: LlamaConfig, step: Step) -> int:
    """Peak bytes of the tensors that the trainer's real step makes; weights and moments are there before."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if step.size == 2 else torch.float32)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    model = SonicModel(base.requires_grad_(False), tokenizer)
    model.adapter = Adapter(base, AdapterConfig(lora_rank=step.rank, scorer_hidden=step.hidden))
    every_token = PlanConfig(
        ratio_min=0.1, ratio_max=0.1, ratio_jitter=0.0, raw_share=0.0, candidates=(9.0,), group_tokens=(1,)
    )
    how = Run(step.flex, step.checkpointing, bf16=step.size == 2)
    objective = DamageObjective(model, model.adapter, every_token, how)
    ids = torch.randint(2, config.vocab_size, (step.tokens,)).tolist()
    dialogue = Encoded(ids, 4, list(range(4 + step.segment, step.tokens, step.segment)), [True] * step.tokens)
    with Live([*base.parameters(), *model.adapter.parameters()]) as live:
        lessons = objective.read([dialogue], [random.Random(0)], scorer=not step.rank)
        objective.backward(lessons, 1.0, scorer=not step.rank, student=bool(step.rank))
    return live.peak


def small(**changes: Any) -> LlamaConfig:
    shape = {"hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 4, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return LlamaConfig(**{**shape, **heads, "bos_token_id": 0, "eos_token_id": 1, **changes})


# Small steps, each ruled by another part.
QUICK = {"tokens": 400, "segment": 16, "flex": False}
DEEP = {
    "num_hidden_layers": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
CHECKS = {
    "blocks, float32": (small(), Step(**QUICK, checkpointing=False, size=4)),
    "blocks": (small(), Step(**QUICK, checkpointing=False)),
    "blocks, checkpointing": (small(), Step(**QUICK)),
    "activations": (small(intermediate_size=4096), Step(**QUICK, checkpointing=False)),
    "activations, checkpointing": (small(intermediate_size=4096), Step(**QUICK)),
    "logits, checkpointing": (small(vocab_size=16384), Step(**QUICK)),
    "logits in chunks, checkpointing": (small(vocab_size=16384), Step(**{**QUICK, "tokens": 1200})),
    "damage": (small(intermediate_size=1024), Step(**QUICK, checkpointing=False, rank=0)),
    "damage, float32": (small(intermediate_size=1024), Step(**QUICK, checkpointing=False, size=4, rank=0)),
    "damage, checkpointing": (small(intermediate_size=1024), Step(**QUICK, rank=0)),
    "damage, many heads": (small(**DEEP), Step(**{**QUICK, "tokens": 1000}, rank=0)),
    "damage, vocabulary": (small(vocab_size=16384), Step(**QUICK, rank=0)),
}


def made(config: LlamaConfig, step: Step) -> float:
    """The part of a prediction that `measure` sees."""
    parts = (lora_step if step.rank else scorer_step)(config, step)
    return sum(size for name, size in parts.items() if name not in ("base", "adapter"))


def table() -> str:
    """Predicted peaks for an 8B Llama; what fits is bold."""
    config = LlamaConfig(**{k: v for k, v in SHAPES["llama-8b"].items() if k != "model_type"})
    kinds = [(flex, checkpointing) for flex in (False, True) for checkpointing in (False, True)]
    lines = [
        "| attention | checkpointing | tokens | whole base | 4 shards | 8 shards | largest parts on 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for flex, checkpointing in kinds:
        for tokens in (4096, 8192, 16384, 32768, 65536):
            cells = []
            for shards in (1, 4, 8):
                parts = predict(config, Step(tokens, shards, checkpointing, flex))
                total = sum(parts.values())
                cells.append(f"**{total / 1e9:.0f}**" if total <= FITS else f"{total / 1e9:.0f}")
            largest = sorted(parts, key=lambda name: -parts[name])[:2]
            cells.append(", ".join(f"{name} {parts[name] / 1e9:.0f}" for name in largest))
            row = ["flex" if flex else "sdpa", "yes" if checkpointing else "no", f"{tokens:,}", *cells]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="predicted against measured, on small steps")
    if parser.parse_args().check:
        for name, case in CHECKS.items():
            predicted, measured = made(*case), measure(*case)
            print(f"{name}: {predicted / 1e6:.1f} MB predicted, {measured / 1e6:.1f} MB measured")
    else:
        print(table())
