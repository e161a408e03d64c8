"""Options of models and adapters."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from sonic_kv.options import Options, option, require

Form = Literal["anchored", "learned"]
Quantization = Literal["nf4", "fp4"]


@dataclass(frozen=True)
class AdapterConfig(Options):
    """The shape of an adapter: what is trained beside the frozen base."""

    form: Form = option(
        "anchored", "a Nexus token starts as a raw token (anchored) or as an embedding (learned)", flag=False
    )
    lora_rank: int = option(
        0, "rank of the conditional LoRA; 0: importance only, entries are not re-encoded", least=0
    )
    lora_alpha: int = option(32, "LoRA scale is alpha / rank", flag=False)
    scorer_hidden: int = option(256, "width of the importance scorer's hidden layer", least=1)
    turn_classes: int = option(
        8, "classes of the turn embedding (learned form): segments 1, 2–3, 4–7, …", least=1, flag=False
    )

    def check(self) -> None:
        require(
            self.form == "anchored" or self.lora_rank > 0,
            "form='learned' needs lora_rank >= 1: a learned Nexus token has no raw entry to fall back on",
        )


@dataclass(frozen=True)
class ModelOptions(Options):
    """Which model, and where it runs."""

    model: str | None = option(
        None,
        "base model: folder, GGUF file, hub id, or tiny (in this package); without it: SmolLM2-135M-Instruct",
    )
    adapter: str | None = option(
        None,
        "adapter: path or hub id; without it: the one in the model's local folder, or this package's for such a model",
    )
    gguf_file: str | None = option(None, "GGUF file in the model's folder or hub repository")
    device: str = option("cpu", "torch device")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "number type of the weights; without it: as stored, and float32 on a CPU"
    )
    packed: bool = option(
        False,
        "keep a second copy of the weights as a CPU's matrix units read them: faster, most so with --dtype bfloat16",
    )
    quantization: Quantization | None = option(None, "load the base in four bits (needs bitsandbytes)")
    chat_template_kwargs: str | None = option(
        None, "what the chat template is told, in JSON: '{\"enable_thinking\": false}'"
    )

    @property
    def template(self) -> dict[str, Any]:
        """What the chat template is told."""
        found = json.loads(self.chat_template_kwargs or "{}")
        return found if isinstance(found, dict) else {}

    def check(self) -> None:
        try:
            read = json.loads(self.chat_template_kwargs or "{}")
        except ValueError:
            read = None
        require(
            isinstance(read, dict),
            'chat_template_kwargs must be a JSON object, as {"enable_thinking": false}',
        )
