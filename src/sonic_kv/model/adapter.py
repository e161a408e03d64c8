"""What SONIC trains beside the frozen base: Nexus embedding, conditional LoRA, importance scorer."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from sonic_kv.errors import AdapterError, FileError, NumericalError, UnsupportedModelError
from sonic_kv.files import as_path, read_header, read_sealed, write_sealed
from sonic_kv.model.attention import twin
from sonic_kv.model.fingerprint import SAMPLE, check_fingerprint, describe, head_dim, kv_heads
from sonic_kv.model.likeness import FAR, SAME, check_likeness, packed, unpacked
from sonic_kv.model.nats import DamageScale
from sonic_kv.model.options import AdapterConfig
from sonic_kv.options import expect
from sonic_kv.text import reason

FILE_NAME = "adapter.safetensors"
LORA_NAME = "sonic"
SHAPES = ("model_type", "hidden_size", "num_hidden_layers", "num_key_value_heads")  # of a fingerprint
_nexus_rows: ContextVar[Tensor | None] = ContextVar("rows that LoRA layers act on", default=None)


def fingerprint(base: PreTrainedModel) -> dict[str, Any]:
    """What an adapter or a saved session depends on: shapes, and a digest of sampled weights."""
    weights = (
        (name, weight.shape, weight.detach().flatten()[:SAMPLE]) for name, weight in base.named_parameters()
    )
    return describe(base.config.get_text_config(), weights)


def with_scale(path: str | Path, scale: DamageScale, folder: str | Path) -> Path:
    """Write the adapter of a folder or file into `folder` as it is, but for what its scores are worth in nats."""
    path = Path(path)
    header, tensors = read_sealed(path / FILE_NAME if path.is_dir() else path, "adapter")
    written = Path(folder) / FILE_NAME
    write_sealed(written, "adapter", {**header, "damage": scale.as_json()}, tensors)
    return written


@contextmanager
def nexus_rows(rows: Tensor | None) -> Iterator[None]:
    """Let LoRA layers act on these rows of a forward only. (B, T) bool; None: on all."""
    before = _nexus_rows.set(rows)
    try:
        yield
    finally:
        _nexus_rows.reset(before)


def same_rows() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `torch.utils.checkpoint`: layers that run again, in whatever thread, act on the same rows."""
    return nullcontext(), nexus_rows(_nexus_rows.get())


def _only_nexus_rows(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    rows = _nexus_rows.get()
    return output if rows is None else output * rows[..., None].to(output.dtype)


class ImportanceScorer(nn.Module):
    """Per layer a two-layer MLP: a token's key (unrotated) and value in all KV heads → one score per head.

    The score predicts, up to a constant, the log of the attention that later turns will pay to the
    token in the full-context base; a learned multiple of (log) distance is the recency.
    What later queries pay depends on a token through its key alone, so the cache itself is the input:
    nothing is computed while decoding.
    """

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        width = 2 * num_heads * head_dim
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(hidden, num_heads) for _ in range(num_layers))
        self.log_rate = nn.Parameter(torch.full((num_layers, num_heads), -1.0))
        self.linear_rate = nn.Parameter(torch.full((num_layers, num_heads), -4.0))

    def forward(self, layer: int, keys: Tensor, values: Tensor) -> Tensor:
        """Importance of entries, recency apart.

        Args:
            keys: unrotated. (B, G, S, D)
            values: (B, G, S, D)

        Returns:
            (B, G, S) float32
        """
        dtype = self.linear_rate.dtype
        entry = torch.cat((keys.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2)), dim=-1)
        hidden = nn.functional.gelu(self.up[layer](self.norm[layer](entry.to(dtype))))
        scores: Tensor = self.down[layer](hidden)
        return scores.transpose(1, 2).float()

    def recency(self, layer: int, distance: Tensor) -> Tensor:
        """What the distance (in tokens, ≥ 0) takes from the score. (…, G, S) → (…, G, S), ≤ 0"""
        log_rate = nn.functional.softplus(self.log_rate[layer].float())[:, None]
        linear_rate = nn.functional.softplus(self.linear_rate[layer].float())[:, None]
        distance = distance.float()
        return -(log_rate * torch.log1p(distance) + linear_rate * distance / 64)


class Adapter(nn.Module):
    """All trained tensors. The base model is not changed: LoRA layers act in a twin of it.

    Args:
        base: the frozen model.

    Attributes:
        scale: what makes nats of the scores; None: that is not known.
    """

    def __init__(self, base: PreTrainedModel, config: AdapterConfig) -> None:
        super().__init__()
        text = base.config.get_text_config()
        self.config = config
        self.scale: DamageScale | None = None
        self.scorer = ImportanceScorer(
            text.num_hidden_layers, kv_heads(text), head_dim(text), config.scorer_hidden
        )
        # anchored: added to the anchor's embedding; learned: the whole embedding, with the turn's
        self.embedding = nn.Parameter(torch.zeros(text.hidden_size))
        self.turn = nn.Embedding(config.turn_classes, text.hidden_size)
        nn.init.zeros_(self.turn.weight)
        if config.form == "learned":
            weight = base.get_input_embeddings().weight.detach().float()
            with torch.no_grad():
                self.embedding.copy_(weight.mean(0).cpu())
                self.turn.weight.normal_(std=float(weight.std()))
        self.lora = nn.ModuleDict()
        self._twin = (twin(base),)  # a tuple: it is no part of this module
        if config.lora_rank:
            self._inject(self.twin)
        self.to(next(base.parameters()).device)

    @property
    def twin(self) -> PreTrainedModel:
        """The base's twin that has the LoRA layers, with the registered attention."""
        return self._twin[0]

    def _inject(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        layers = next(name for name, module in decoder.named_children() if isinstance(module, nn.ModuleList))
        options = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            target_modules=rf".*\b{layers}\.\d+\..*proj",
        )
        frozen = [(weight, weight.requires_grad) for weight in model.parameters()]
        try:
            inject_adapter_in_model(options, model, LORA_NAME)
        except ValueError as error:  # nothing matches
            raise UnsupportedModelError(
                f"{type(model).__name__} has no linear layers named …proj for a LoRA to act on: use lora_rank=0"
            ) from error
        for weight, learns in frozen:  # they are the base's, and PEFT froze them
            weight.requires_grad_(learns)
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                pair = nn.ModuleDict({"A": module.lora_A[LORA_NAME], "B": module.lora_B[LORA_NAME]})
                self.lora[name.replace(".", "/")] = pair
                module.lora_B[LORA_NAME].register_forward_hook(_only_nexus_rows)

    @property
    def reencodes(self) -> bool:
        """Whether there is anything to re-encode entries with."""
        return len(self.lora) > 0

    def embed(self, anchors: Tensor, segment: Tensor) -> Tensor:
        """Input embeddings of Nexus tokens.

        Args:
            anchors: embeddings of the anchor tokens. (B, N, C)
            segment: number of the segment, from 1. (B, N)

        Returns:
            (B, N, C)
        """
        if self.config.form == "anchored":
            return anchors + self.embedding.to(anchors.dtype)
        # classes double in width: segments 1, 2–3, 4–7, …
        turn = segment.clamp(min=1).float().log2().floor().long().clamp(max=self.config.turn_classes - 1)
        rows: Tensor = self.embedding + self.turn(turn)
        return rows.to(anchors.dtype)

    def save(
        self,
        folder: str | Path,
        base: dict[str, Any],
        notes: dict[str, Any] | None = None,
        behaviour: dict[str, Tensor] | None = None,
    ) -> Path:
        """Write `adapter.safetensors` for a base with fingerprint `base`; returns its path.

        Args:
            behaviour: what the base predicts (`likeness.behaviour`): with it the adapter loads on every base that does
                the same; None: on this one only.
        """
        path = Path(folder) / FILE_NAME
        scale = None if self.scale is None else self.scale.as_json()
        header = {"config": asdict(self.config), "base": base, "damage": scale, "notes": notes or {}}
        tensors = self.state_dict() | ({} if behaviour is None else packed(behaviour))
        write_sealed(path, "adapter", header, tensors)
        return path

    def digest(self) -> str:
        """Identifies the weights, whatever their dtype and device."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            weights = tensor.detach().to("cpu", torch.bfloat16).flatten().view(torch.uint8)
            digest.update(name.encode() + weights.numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def load(cls, base: PreTrainedModel, path: str | Path, *, far: float = FAR) -> "Adapter":
        """Read an adapter folder or file.

        Args:
            far: nats a token by which the base's predictions may differ from those of the base it was made for.

        Raises:
            FileError: missing, damaged or changed.
            AdapterError: made for another model, whose predictions are far from this one's.
            NumericalError: it holds NaN or infinite weights.
        """
        expect(base, PreTrainedModel, "base", "Adapter.load(base, path) takes one of transformers")
        path = as_path(path)
        path = path / FILE_NAME if path.is_dir() else path
        what, here = f"adapter {path}", fingerprint(base)
        shapes = {name: here[name] for name in SHAPES}
        check_fingerprint(read_header(path).get("base"), shapes, what)  # before the whole file is read
        header, tensors = read_sealed(path, "adapter")
        behaviour = unpacked(tensors)
        if behaviour is None:
            check_fingerprint(header["base"], here, what)
        elif header["base"]["weights"] != here["weights"]:
            check_likeness(base, behaviour, what, far)
        bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise NumericalError(f"{what} holds NaN or infinite weights in {bad[0]}: train it again")
        try:
            config = {**header["config"]}
            if config.get("scope") == "causal":  # as files of before have it; there is nothing else any more
                del config["scope"]
            adapter = cls(base, AdapterConfig(**config))
            adapter.load_state_dict(tensors)
            adapter.scale = DamageScale.from_json(header.get("damage"), what)
        except (KeyError, TypeError, RuntimeError) as error:
            raise FileError(
                f"{what} does not fit this version of sonic-kv: {json.dumps(reason(error))}"
            ) from error
        return adapter.eval()

    @classmethod
    def fitting(cls, base: PreTrainedModel, files: Iterable[Path]) -> "Adapter | None":
        """The first of these files that was made for a base which does the same; None: none was."""
        for file in files:
            try:
                return cls.load(base, file, far=SAME)
            except AdapterError:  # of another base
                continue
        return None
