"""`sonic-kv bench …`: what compression costs and saves."""

import json
from importlib import import_module
from types import ModuleType

from sonic_kv.bench.options import (
    BenchBatchOptions,
    BenchClosingOptions,
    BenchDialogueOptions,
    BenchServeOptions,
    BenchSoakOptions,
    BenchTrainingOptions,
)
from sonic_kv.cli.command import Call, Command, note
from sonic_kv.cli.loading import load_for_decoding, model_or_shape
from sonic_kv.cli.options import DecodeOptions
from sonic_kv.errors import ConfigError, ServeError
from sonic_kv.model.options import ModelOptions


def closing(call: Call) -> None:
    """Closing a segment and decoding, against prefilling and a plain cache."""
    model = load_for_decoding(call.options(ModelOptions))

    from sonic_kv.bench import closing

    _show(call, closing, closing.measure(model, call.options(BenchClosingOptions)))


def dialogue(call: Call) -> None:
    """Whole dialogues on every method."""
    options, decoding = call.options(BenchDialogueOptions), call.options(DecodeOptions)
    if decoding.compile and options.batch > 1:
        raise ConfigError("--compile is for one dialogue at a time: leave --batch out")
    named = call.options(ModelOptions)
    model, name = model_or_shape(options.shape, options.seed, named, compiled=decoding.compile)

    from sonic_kv.bench import dialogue

    if options.out is not None:
        dialogue.check_plot()  # before the work, not after it
    _show(call, dialogue, dialogue.measure(model, name, options), options.out)


def batch(call: Call) -> None:
    """Decode steps at growing batch sizes."""
    options = call.options(BenchBatchOptions)
    model, name = model_or_shape(options.shape, options.seed, call.options(ModelOptions))

    from sonic_kv.bench import batch

    _show(call, batch, batch.measure(model, name, options))


def training(call: Call) -> None:
    """The one-pass training forward against compressing segment by segment."""
    options = call.options(BenchTrainingOptions)
    model, _ = model_or_shape(options.shape, options.seed, call.options(ModelOptions))

    from sonic_kv.bench import closing, training

    _show(call, closing, training.measure(model, options))


def serve(call: Call) -> None:
    """A server's dialogues, compressed and with full context."""
    serve = _with_extra("serve")
    options = call.options(BenchServeOptions)
    model, name = model_or_shape(options.shape, options.seed, call.options(ModelOptions))
    if options.out is not None:
        import_module("sonic_kv.bench.dialogue").check_plot()  # before the work, not after it
    _show(call, serve, serve.measure(model, name, options), options.out)


def soak(call: Call) -> None:
    """A server under load for a while; an error if it broke a promise."""
    soak = _with_extra("soak")
    options, named = call.options(BenchSoakOptions), call.options(ModelOptions)
    result = soak.measure(load_for_decoding(named), named.model or "default model", named, options)
    _show(call, soak, result, options.out)
    broken = result.failures()
    if broken:
        raise ServeError(f"the server broke its promises: {'; '.join(broken)}")


def _with_extra(name: str) -> ModuleType:
    """A module of `sonic_kv.bench` that needs an extra of the package."""
    try:
        return import_module(f"sonic_kv.bench.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench {name} needs {error.name}: pip install 'sonic-kv[bench]'") from error


def _show(call: Call, module: ModuleType, result: object, out: str | None = None) -> None:
    """Write the files of a result into the folder `out`, if there is one, and print its report."""
    if out is not None:
        module.write(result, out)
        note(f"wrote {out}")
    print(json.dumps(module.as_json(result)) if call.json else module.report(result))


BENCH = (
    Command(
        "bench closing",
        "time closing a segment and decoding on a compressed cache, as paired ratios",
        closing,
        {"model": ModelOptions, "closing": BenchClosingOptions},
        json="the figures",
    ),
    Command(
        "bench batch",
        "time decoding many dialogues at once, and see how many fit",
        batch,
        {"model": ModelOptions, "batch": BenchBatchOptions},
        json="the figures",
    ),
    Command(
        "bench dialogue",
        "time whole dialogues with full, evicted and compressed history, turn by turn",
        dialogue,
        {"model": ModelOptions, "decode": DecodeOptions, "dialogue": BenchDialogueOptions},
        json="the figures, and every time behind them",
    ),
    Command(
        "bench training",
        "time the one-pass training forward against compressing segment by segment",
        training,
        {"model": ModelOptions, "bench_training": BenchTrainingOptions},
        json="the figures",
    ),
    Command(
        "bench serve",
        "count and time a server's dialogues, compressed against full context",
        serve,
        {"model": ModelOptions, "bench_serve": BenchServeOptions},
        json="the figures, and every time behind them",
    ),
    Command(
        "bench soak",
        "keep a server at its memory limit with dialogues that come, branch and leave, and compare every reply",
        soak,
        {"model": ModelOptions, "soak": BenchSoakOptions},
        json="everything that was counted",
    ),
)
