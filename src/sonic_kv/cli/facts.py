"""Facts of a session, an adapter or a model, as `sonic-kv inspect` shows them."""

import json
import math
from pathlib import Path
from typing import Any

from sonic_kv.errors import FileError
from sonic_kv.text import bytes_text, reason

LONG = 6  # longer lists are counted instead of shown


def facts(target: str | Path | None) -> dict[str, Any]:
    """Describe a sealed file, an adapter's folder, or a model by path or hub id; None: the default model.

    Returns:
        JSON-able facts; `kind` is "session", "adapter", "export" or "model".

    Raises:
        FileError: there is nothing to describe, or it is damaged.
    """
    from sonic_kv.files import from_hub
    from sonic_kv.model.adapter import FILE_NAME

    path = Path(target or "")
    if target is None or str(target) == "tiny" or path.suffix == ".gguf":
        from sonic_kv.model import loading

        path = Path(loading.find(target).place)
    if path.is_file():
        return _sealed(path)
    adapter, config = path / FILE_NAME, path / "config.json"
    if adapter.is_file() and not (config.is_file() and "model_type" in read_json(config)):
        return _sealed(adapter)
    if config.is_file():
        found = _model(config)
        shards = sorted(file for file in path.glob("*.safetensors") if file.name != FILE_NAME)
        if shards:
            found |= {"parameters": sum(map(_elements, shards)), "file_bytes": sum(map(_size, shards))}
        return {**found, "adapter": _sealed(adapter)} if adapter.is_file() else found
    if path.exists():
        raise FileError(f"{path} holds neither a model (config.json) nor an adapter ({FILE_NAME})")
    return _model(from_hub(str(path), "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read as JSON: {reason(error)}") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is not a JSON object")
    return found


def _size(path: Path) -> int:
    return path.stat().st_size


def _sealed(path: Path) -> dict[str, Any]:
    """A sealed file's header, its checksum verified, and what its tensors take."""
    from sonic_kv.files import read_header, read_sealed

    kind = read_header(path).get("kind", "unknown")
    header, tensors = read_sealed(path, kind)
    return {
        "kind": header.pop("kind"),
        "file": str(path),
        "file_bytes": _size(path),
        "tensors": len(tensors),
        "elements": sum(tensor.numel() for tensor in tensors.values()),
        **header,
    }


def _elements(path: Path) -> int:
    """Number of weights in a safetensors file: its header holds every shape."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise FileError(f"{path} is damaged or not a safetensors file") from error


def _model(path: Path) -> dict[str, Any]:
    """The facts of a model's configuration that decide what its cache costs."""
    whole = read_json(path)
    config = whole.get("text_config", whole)
    try:
        heads = config["num_attention_heads"]
        groups = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        layers = config["num_hidden_layers"]
        return {
            "kind": "model",
            "config_file": str(path),
            "model_type": whole["model_type"],
            "num_hidden_layers": layers,
            "hidden_size": config["hidden_size"],
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": head_dim,
            "vocab_size": config.get("vocab_size"),
            "max_position_embeddings": config.get("max_position_embeddings"),
            "entry_bytes_float32": 2 * layers * groups * head_dim * 4,
        }
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise FileError(f"{path} is not the configuration of a causal language model ({error})") from error


def _value_text(key: str, value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, list):
        plain = len(value) <= LONG and not any(isinstance(part, (dict, list)) for part in value)
        return ", ".join(map(str, value)) or "none" if plain else f"{len(value)} items"
    if type(value) is int:
        return f"{value:,}" + (f" ({bytes_text(value)})" if "bytes" in key else "")
    return str(value)


def as_text(found: dict[str, Any], indent: str = "") -> str:
    """Facts as indented `key: value` lines; sizes with units, long lists counted."""
    lines = []
    for key, value in found.items():
        label = f"{indent}{key.replace('_', ' ')}:"
        if isinstance(value, dict) and value:
            lines += [label, as_text(value, indent + "  ")]
        else:
            lines.append(f"{label} {_value_text(key, value)}")
    return "\n".join(lines)
