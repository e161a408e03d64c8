"""Train the default base model: a curriculum of synthetic dialogues, mixed with short real ones.

    python pretrain.py --packed ../../runs/packed --out ../../runs/base --minutes 55

Writes `log.jsonl`, `checkpoint.safetensors` (with `--resume` the run goes on) and, with every checkpoint
and at the end, the model and its tokenizer in bf16 under `OUT/export`: the mean weights of the last steps.
"""

import argparse
import copy
import itertools
import json
import lzma
import math
import random
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    BOS,
    END,
    HERE,
    SCALES,
    Batch,
    Example,
    collate,
    encode,
    load_config,
    loss_and_recall,
)
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.training.trainer import multiplies_bf16


def blockwise_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in blocks of queries: on a CPU twice as fast, backward included, as the fused kernel.

    Padding is on the right, where causality alone keeps it out of sight. `query` (B, H, T, D).
    """
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    blocks = []
    for start in range(0, length, 128):
        end = min(start + 128, length)
        scores = scaling * query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2)  # (B, H, block, end)
        future = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        blocks.append(scores.masked_fill(future, -math.inf).softmax(-1).to(value.dtype) @ value[:, :, :end])
    return torch.cat(blocks, 2).transpose(1, 2), None


def make_model(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A random model whose residual branches start at zero."""
    shape = {key: value for key, value in config["model"].items() if key != "rope_theta"}
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": config["model"]["rope_theta"]},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
    )
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def orthogonalised(
    grad: torch.Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz iterations of Muon in the precision of `grad`; torch's own are always in bf16."""
    a, b, c = ns_coefficients
    wide = grad if len(grad) <= grad.shape[1] else grad.T
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if len(grad) <= grad.shape[1] else wide.T


def make_optimizers(model: Qwen3ForCausalLM, config: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    train = config["train"]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=train["muon_lr"], momentum=0.95),
        torch.optim.AdamW(others, lr=train["adamw_lr"], betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@dataclass
class Progress:
    """Where a run stands: everything but the tensors that a checkpoint needs."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    exchanges: int = 2
    steps_at_level: int = 0
    recall: float = 0.0  # moving average on fresh training dialogues


@torch.no_grad()
def follow(average: Qwen3ForCausalLM, model: Qwen3ForCausalLM, steps: int) -> None:
    """Move the mean weights of the last `steps` steps, older ones fading, towards those of the newest."""
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1.0 / steps)


def save_checkpoint(
    path: Path,
    model: Qwen3ForCausalLM,
    average: Qwen3ForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Write weights, their mean, optimiser state and progress to one file, which is complete or not there."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"average.{name}": p.detach() for name, p in average.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in state.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"progress": json.dumps(asdict(progress))})
    temporary.replace(path)


def load_checkpoint(
    path: Path,
    model: Qwen3ForCausalLM,
    average: Qwen3ForCausalLM,
    optimizers: list[torch.optim.Optimizer],
) -> Progress:
    """Put a checkpoint's tensors into model, mean and optimisers."""
    with safe_open(path, "pt") as file, torch.no_grad():
        for sort, of in (("model", model), ("average", average)):
            for name, parameter in of.named_parameters():
                parameter.copy_(file.get_tensor(f"{sort}.{name}"))
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
        for key in file.keys():  # noqa: SIM118 (the file is no dict)
            if key.startswith("optimizer."):
                _, i, j, name = key.split(".")
                states[int(i)].setdefault(int(j), {})[name] = file.get_tensor(key)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return Progress(**json.loads(file.metadata()["progress"]))


class Corpus:
    """The packed real data: documents cut into pieces, sorted by length so that neighbours fit into a batch."""

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        with lzma.open(path / "ids.npy.xz") as file:
            self.ids: np.ndarray = np.load(file)
        self.words = tuple((path / "words.txt").read_text().split())
        self._bos, self._end, self._user, self._assistant = tokenizer.convert_tokens_to_ids(
            [BOS, END, "<|user|>", "<|assistant|>"]
        )
        starts = np.flatnonzero(self.ids == self._bos)
        pieces: list[tuple[int, int, bool]] = []
        for start, stop in zip(starts, [*starts[1:], len(self.ids)], strict=True):
            dialogue = bool((self.ids[start:stop] == self._user).any())
            while start < stop:
                ends = np.flatnonzero(self.ids[start : min(start + longest, stop)] == self._end)
                end = start + int(ends[-1]) + 1 if len(ends) else min(start + longest, stop)
                pieces.append((int(start), int(end), dialogue))
                start = end
        pieces.sort(key=lambda piece: piece[1] - piece[0])
        self._pieces = pieces
        self._dialogues = [piece for piece in pieces if piece[2]]

    def __len__(self) -> int:
        return len(self._pieces)

    def batch(self, rng: random.Random, budget: int, user_weight: float, finetune: bool) -> list[Example]:
        """Pieces of about one length, together about `budget` tokens; of dialogues only if `finetune`."""
        pieces = self._dialogues if finetune else self._pieces
        at = rng.randrange(len(pieces))
        count = max(1, budget // (pieces[at][1] - pieces[at][0]))
        return [self._example(*piece[:2], user_weight) for piece in pieces[max(0, at + 1 - count) : at + 1]]

    def _example(self, start: int, end: int, user_weight: float) -> Example:
        ids = self.ids[start:end]
        marks = np.isin(ids, (self._user, self._assistant)) | (ids == self._bos)
        newest = np.maximum.accumulate(np.where(marks, np.arange(len(ids)), 0))
        reply = (ids[newest] == self._assistant) & ~marks
        weights = np.where(reply, 1.0, user_weight)
        return Example(ids.tolist(), weights.tolist(), [-1] * len(ids))


class Mixture(torch.utils.data.Dataset[Batch]):
    """Batches of a step, drawn by step number: resuming needs no generator state.

    `level` (exchanges, finetuning or not) is shared with the processes that prepare batches.
    """

    def __init__(self, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, packed: Path) -> None:
        self.config, self.tokenizer = config, tokenizer
        train = config["train"]
        self.weights = (train["answer_weight"], train["user_weight"])
        self.corpus = Corpus(packed, tokenizer, config["data"]["real_max_tokens"])
        self.level = torch.tensor([train["start_exchanges"], 0]).share_memory_()

    def synthetic(self, rng: random.Random, exchanges: int, budget: int, split: str = "train") -> Batch:
        """Dialogues of one length of up to `exchanges` exchanges, about `budget` tokens with padding."""
        longest = rng.randint(max(2, exchanges // 6), exchanges)
        distance = 1 if rng.random() < 0.5 else rng.randint(1, max(1, longest - 2))
        examples: list[Example] = []
        width = 0
        config = SynthConfig(
            dialogues=1000,
            split=split,  # type: ignore[arg-type]
            seed=rng.randrange(2**60),
            min_exchanges=longest,
            max_exchanges=longest,
            min_distance=distance,
            question_share=rng.choice((0.4, 0.6, 0.8)),
            fact_share=rng.choice((0.5, 0.7, 0.9)),
            chatter_sentences=rng.choice((1, 2, 3)),
        )
        for dialogue in generate_dialogues(config, self.corpus.words):
            if not dialogue["meta"]["questions"]:
                continue
            answers, user = self.weights
            examples.append(encode(self.tokenizer, dialogue, answers, 0.0 if self.level[1] else user))
            width = max(width, len(examples[-1].ids))
            if (len(examples) + 1) * width > budget:
                break
        return collate(examples, self.tokenizer.pad_token_id)

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.config['train']['seed']}/{step}")
        budget = self.config["train"]["tokens_per_step"]
        exchanges, finetune = self.level.tolist()
        if rng.random() < self.config["data"]["real_share"]:
            user_weight = 0.0 if finetune else self.weights[1]
            examples = self.corpus.batch(rng, budget, user_weight, bool(finetune))
            return collate(examples, self.tokenizer.pad_token_id)
        return self.synthetic(rng, exchanges, budget)


def schedule(progress: Progress, minutes: float, train: dict[str, Any]) -> float:
    """The share of the peak rates: warm-up by steps, then the configured line over the clock."""
    now = progress.seconds / (60.0 * minutes)
    share = 0.0
    for (start, low), (end, high) in itertools.pairwise(train["schedule"]):
        if start <= now < end:
            share = low + (high - low) * (now - start) / (end - start)
    return min(share, (progress.step + 1) / train["warmup_steps"])


def validation_recall(model: Qwen3ForCausalLM, mixture: Mixture, exchanges: int) -> tuple[float, int]:
    """Teacher-forced recall on the validation split (its own wordings and entities)."""
    rng = random.Random(0)
    right = []
    with torch.no_grad():
        for _ in range(4):
            batch = mixture.synthetic(rng, exchanges, 3000, "validation").to(model.device)
            right.append(loss_and_recall(model, batch)[2])
    recalled = torch.cat(right)
    return recalled.mean().item(), len(recalled)


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model in bf16, in shards that fit through narrow doors, and its tokenizer."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    rounded = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.save_pretrained(temporary, max_shard_size="15MB")
    index = temporary / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():  # one shard: without an index vLLM would read an adapter beside it as weights, too
        with safe_open(temporary / SAFE_WEIGHTS_NAME, framework="pt") as file:
            index.write_text(
                json.dumps({"weight_map": dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME)}, indent=1)
            )
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def train(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.scale)
    settings = config["train"]
    torch.manual_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(arguments.packed / "tokenizer")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(config, tokenizer)
    if arguments.init:
        start = Qwen3ForCausalLM.from_pretrained(arguments.init, dtype=torch.float32)
        model.load_state_dict(start.state_dict())
    model.to(device)
    bf16 = multiplies_bf16(device)
    if not bf16:
        torch.optim._muon._zeropower_via_newtonschulz = orthogonalised
    if device.type != "cuda":
        AttentionInterface.register("blockwise", blockwise_attention)
        model.set_attn_implementation("blockwise")
    average = copy.deepcopy(model).requires_grad_(False)  # what is validated and exported
    if device.type == "cuda":
        model.model.compile(dynamic=True)
    optimizers = make_optimizers(model, config)
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.export or arguments.out / "export"
    checkpoint = arguments.out / "checkpoint.safetensors"
    progress = Progress(exchanges=settings["start_exchanges"])
    if arguments.resume:
        progress = load_checkpoint(checkpoint, model, average, optimizers)
        progress.exchanges = min(progress.exchanges, settings["max_exchanges"])
    (arguments.out / "config.json").write_text(json.dumps(config, indent=1))
    mixture = Mixture(config, tokenizer, arguments.packed)
    batches = torch.utils.data.DataLoader(
        mixture,
        batch_size=None,
        sampler=itertools.count(progress.step),  # type: ignore[arg-type]
        num_workers=settings["workers"],
        pin_memory=device.type == "cuda",
    )
    print(f"{model.num_parameters():,} parameters, {len(mixture.corpus):,} real pieces", flush=True)

    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    saved = progress.seconds
    started = time.monotonic() - progress.seconds
    with (arguments.out / "log.jsonl").open("a") as log:
        for batch in batches:
            if progress.seconds >= 60 * arguments.minutes:
                break
            finetune = progress.seconds >= 60 * arguments.minutes * settings["finetune_from"]
            mixture.level[:] = torch.tensor([progress.exchanges, int(finetune)])
            scale = schedule(progress, arguments.minutes, settings)
            with autocast():
                loss, _, right = loss_and_recall(model, batch.to(device))
            if not math.isfinite(loss.item()):
                raise SystemExit(f"loss is {loss.item()} at step {progress.step}: lower the learning rates")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * scale
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.steps_at_level += 1
            follow(average, model, min(progress.step, settings["average_steps"]))
            progress.tokens += int((batch.weights > 0).sum())
            progress.seconds = time.monotonic() - started
            if batch.count:
                progress.recall += 0.05 * (right.mean().item() - progress.recall)
            record = {**asdict(progress), "loss": loss.item(), "lr": scale}
            if progress.step % settings["evaluate_every"] == 0:
                with autocast():
                    record["validation_recall"], _ = validation_recall(average, mixture, progress.exchanges)
            if progress.step % 20 == 0:
                log.write(json.dumps(record) + "\n")
                log.flush()
                print({k: round(v, 3) for k, v in record.items()}, flush=True)
            ready = progress.steps_at_level >= settings["steps_per_level"]
            if (
                ready
                and progress.recall > settings["next_at"]
                and progress.exchanges < settings["max_exchanges"]
            ):
                progress.exchanges += 1
                progress.steps_at_level = 0
            if progress.seconds - saved > 60 * settings["checkpoint_minutes"]:
                save_checkpoint(checkpoint, model, average, optimizers, progress)
                export(average, tokenizer, target)
                saved = progress.seconds
    save_checkpoint(checkpoint, model, average, optimizers, progress)
    export(average, tokenizer, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, required=True, help="what pack.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="wall-clock time of the whole run")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--export", type=Path, help="folder of the finished model; none: OUT/export")
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--init", type=Path, help="start from the weights of this export, not at random")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.safetensors")
    train(parser.parse_args())
