"""The model that a command runs on. Heavy libraries are imported inside the functions."""

import os
import sys
from typing import TYPE_CHECKING, Any

from sonic_kv.bench.options import Shape
from sonic_kv.cli.command import note
from sonic_kv.errors import ConfigError
from sonic_kv.model.options import ModelOptions
from sonic_kv.text import reason

if TYPE_CHECKING:
    from sonic_kv.model.model import SonicModel

SMALL_MODEL = 20_000_000  # parameters


def load_model(options: ModelOptions) -> "SonicModel":
    """The model that the options name."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from sonic_kv.model.model import SonicModel

    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading weights
    try:  # torch raises each of these: an unknown name, a build without CUDA, a device that holds no data
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {options.device} cannot be used: {reason(error)}") from error
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    model = SonicModel.from_pretrained(
        options.model,
        options.adapter,
        gguf_file=options.gguf_file,
        device=device,
        dtype=dtype,
        quantization=options.quantization,
        chat_template_kwargs=options.template,
    )
    if options.packed:
        model.pack()
    return model


def load_for_decoding(options: ModelOptions, *, compiled: bool = False) -> "SonicModel":
    """The model, for decoding: on a CPU a small one runs on one thread, others would only wait for it.

    `OMP_NUM_THREADS` decides instead where it is set.
    """
    import torch

    model = load_model(options)
    size = sum(weight.numel() for weight in model.base.parameters())
    if model.device.type == "cpu" and size < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if compiled:
        note("compiling the decode step …")
        model.compile()
    return model


def say_adapter(model: "SonicModel") -> None:
    """Say what a model without an adapter would gain by one, or that there is nothing to compress."""
    if not model.compressed_layers:
        note(
            f"every layer sees its newest {model.sliding_window} tokens alone: what is older is forgotten, as by the "
            "model itself, and nothing else is removed"
        )
    elif model.adapter is None:
        note(
            "no adapter: every segment is read twice to find what to keep (reread), and half of the past is removed; "
            "with an adapter (sonic-kv train) more can go, and nothing is read twice"
        )


def model_or_shape(
    shape: Shape | None, seed: int, named: ModelOptions, *, compiled: bool = False
) -> tuple["SonicModel", str]:
    """The model to time, and what to call it.

    Args:
        shape: random weights of a known shape instead of a model.
        seed: of these weights.
    """
    suffix = (", packed weights" if named.packed else "") + (", compiled decode step" if compiled else "")
    if shape is None:
        return load_for_decoding(named, compiled=compiled), (named.model or "default model") + suffix
    if named.model is not None or named.adapter is not None:
        raise ConfigError("--shape makes a model of its own: leave --model and --adapter out")

    import torch

    from sonic_kv.bench.shapes import random_model

    tokenizer: Any = load_model(ModelOptions(model="tiny")).tokenizer
    dtype = getattr(torch, named.dtype or ("float32" if named.device == "cpu" else "bfloat16"))
    model = random_model(shape, named.device, dtype, tokenizer, seed)
    if named.packed:
        model.pack()
    if compiled:
        model.compile()
    return model, f"{shape}, random weights{suffix}"
