"""`sonic-kv plan`: what compression saves for a model, from its configuration alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic_kv.cli.command import Call, Command
from sonic_kv.cli.facts import read_json
from sonic_kv.cli.options import PlanOptions
from sonic_kv.errors import ConfigError, FileError
from sonic_kv.model.shapes import KNOWN, ModelShape, shape_of
from sonic_kv.options import parse_bytes
from sonic_kv.text import bytes_text, nearest, percent_text, table

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
NUMBER_BYTES = 2  # of a weight, a key or a value: bfloat16
ENTRY_BYTES = 8  # beside a head's key and value: its position and its score
SLOWER = 0.1  # a decode step is noticeably slower when it reads so much of the weights' bytes from the cache
# A scorer reads tokens forwards and backwards, without gradients of weights: 4 operations a weight. To learn from its
# choices it reads others forwards twice and backwards: 6.
DAMAGE_TOKENS, CHOICE_TOKENS = 60_000, 100_000


@dataclass(frozen=True)
class Way:
    """A way to keep the past: what is removed, and in how many bits the rest is kept."""

    ratio: float
    bits: int | None = None

    def __str__(self) -> str:
        if not self.ratio:
            return "full context"
        return f"{percent_text(self.ratio)} removed" + (f", {self.bits} bits" if self.bits else "")


WAYS = (Way(0.0), Way(0.5), Way(0.8), Way(0.9), Way(0.8, 8), Way(0.8, 4))


def find(model: str) -> tuple[str, dict[str, Any]]:
    """Name and configuration of a model: a folder, a configuration file, a well-known name or a hub id.

    Raises:
        FileError: there is none.
    """
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return str(model), read_json(path)
    short = {name.split("/")[1].lower(): name for name in KNOWN} | {name.lower(): name for name in KNOWN}
    if model.lower() in short:
        name = short[model.lower()]
        return name, KNOWN[name]
    from sonic_kv.files import from_hub

    try:
        return model, read_json(from_hub(model, "config.json"))
    except FileError as error:
        raise FileError(f"{error}{nearest(model, [n.split('/')[1] for n in KNOWN])}") from error


def dialogue_bytes(shape: ModelShape, tokens: int, way: Way) -> int:
    """Keys and values of a dialogue of so many tokens, all of it closed."""
    slid, every = shape.window_bytes(tokens, NUMBER_BYTES), shape.compressed_heads
    if not way.ratio:
        return slid + 2 * tokens * every * shape.head_dim * NUMBER_BYTES
    from sonic_kv.cache.bits import vector_bytes

    vector = NUMBER_BYTES * shape.head_dim if way.bits is None else vector_bytes(shape.head_dim, way.bits)
    return slid + round((1 - way.ratio) * tokens) * every * (2 * vector + ENTRY_BYTES)


def plan(options: PlanOptions, model: str) -> dict[str, Any]:
    """JSON-able figures.

    Raises:
        ConfigError: the weights alone do not fit into the memory.
        FileError: there is no such model.
    """
    name, config = find(model)
    shape = shape_of(config, name)
    weights, memory = shape.parameters * NUMBER_BYTES, parse_bytes(options.memory)
    if memory <= weights:
        raise ConfigError(
            f"the weights of {name} take {bytes_text(weights)}: --memory {options.memory} is too little"
        )
    token = shape.token_bytes(NUMBER_BYTES)
    growing = token * shape.compressed_heads // shape.heads
    rows = []
    for way in WAYS:
        sizes = {str(n): dialogue_bytes(shape, n, way) for n in options.tokens}
        fit = {tokens: (memory - weights) // size for tokens, size in sizes.items()}
        rows.append({"removed": way.ratio, "bits": way.bits, "bytes": sizes, "dialogues": fit})
    return {
        "model": name,
        "layers": shape.layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "positions": shape.positions,
        "parameters": shape.parameters,
        "weight_bytes": weights,
        "token_bytes": token,
        "memory": memory,
        "rows": rows,
        "windows": [window for window in shape.windows if window is not None],
        "slower_from_tokens": round(SLOWER * weights / growing) if growing else None,
        "training_operations": shape.parameters * (4 * DAMAGE_TOKENS + 6 * CHOICE_TOKENS),
    }


def as_text(found: dict[str, Any]) -> str:
    """The figures as people read them."""
    rows, lengths = found["rows"], list(found["rows"][0]["bytes"])
    names = [str(Way(row["removed"], row["bits"])) for row in rows]
    head = [f"{int(n):,} tokens" for n in lengths]
    sizes = [
        [name, *(bytes_text(row["bytes"][n]) for n in lengths)] for name, row in zip(names, rows, strict=True)
    ]
    fit = [
        [name, *(f"{row['dialogues'][n]:,}" for n in lengths)] for name, row in zip(names, rows, strict=True)
    ]
    longest = max(map(int, lengths))
    alone, operations = found["slower_from_tokens"], found["training_operations"]
    slow = (
        "Memory is saved from the first closed segment on. A decode step of full context is slower by a tenth at "
        f"{alone:,} tokens; in a batch of 8 at {alone // 8:,} tokens each."
        if alone
        else "Nothing is left to compress: the model forgets what its windows do not reach."
    )
    windows = found["windows"]
    slides = [f"{len(windows)} layers see their newest {windows[0]:,} tokens alone."] if windows else []
    notes = [
        *slides,
        slow,
        f"A scorer is trained on about {DAMAGE_TOKENS + CHOICE_TOKENS:,} tokens: {operations:.2g} operations, "
        f"{operations / 1e11 / 60:.0f} minutes at 100 GFLOP/s, {operations / 1e14:.1f} s at 100 TFLOP/s.",
    ]
    if longest > found["positions"]:
        notes.append(f"The model was made for {found['positions']:,} tokens at most.")
    return "\n".join(
        [
            f"{found['model']}: {found['parameters'] / 1e9:.3g} billion parameters "
            f"({bytes_text(found['weight_bytes'])} in bf16), {found['layers']} layers of {found['kv_heads']} KV heads",
            f"One token of full context takes {bytes_text(found['token_bytes'])}.",
            "",
            table(["keys and values of one dialogue", *head], sizes),
            "",
            table([f"dialogues in {bytes_text(found['memory'])}, beside the weights", *head], fit),
            "",
            *notes,
        ]
    )


def run(call: Call) -> None:
    """Say what compression saves for a model."""
    found = plan(call.options(PlanOptions), call.target or DEFAULT_MODEL)
    print(json.dumps(found) if call.json else as_text(found))


PLAN = Command(
    "plan",
    "say what compression saves for a model: bytes, dialogues in a memory, and where it begins to pay",
    run,
    {"sizes": PlanOptions},
    target=f"folder, config.json, hub id or well-known name of a model (default: {DEFAULT_MODEL})",
    json="the figures",
)
