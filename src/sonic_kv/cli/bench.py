"""`sonic-kv bench …`: what compression costs and saves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from sonic_kv.bench.report import Report


def closing(call: Call) -> None:
    """Closing a segment and decoding, against prefilling and a plain cache."""
    model = load_for_decoding(call.options(ModelOptions))

    from sonic_kv.bench.closing import measure, report

    _show(call, report(measure(model, call.options(BenchClosingOptions))))


def dialogue(call: Call) -> None:
    """Whole dialogues on every method."""
    options, decoding = call.options(BenchDialogueOptions), call.options(DecodeOptions)
    named = call.options(ModelOptions)
    if decoding.compile and max(options.batch) > 1 and not named.device.startswith("cuda"):
        raise ConfigError("--compile is for one dialogue at a time unless on a GPU: leave --batch out")
    model, name = model_or_shape(options.shape, options.seed, named, compiled=decoding.compile)

    from sonic_kv.bench.dialogue import measure, report

    _check_plot(options.out)
    with _extra("dialogue --against"):
        _show(call, report(measure(model, name, options)), options.out)


def batch(call: Call) -> None:
    """Decode steps at growing batch sizes."""
    options = call.options(BenchBatchOptions)
    model, name = model_or_shape(options.shape, options.seed, call.options(ModelOptions))

    from sonic_kv.bench.batch import measure, report

    _show(call, report(measure(model, name, options)))


def training(call: Call) -> None:
    """The one-pass training forward against compressing segment by segment."""
    options = call.options(BenchTrainingOptions)
    model, _ = model_or_shape(options.shape, options.seed, call.options(ModelOptions))

    from sonic_kv.bench.closing import report
    from sonic_kv.bench.training import measure

    _show(call, report(list(measure(model, options))))


def serve(call: Call) -> None:
    """A server's dialogues, compressed and with full context."""
    with _extra("serve"):
        from sonic_kv.bench.serve import measure, report

    options = call.options(BenchServeOptions)
    model, name = model_or_shape(options.shape, options.seed, call.options(ModelOptions))
    _check_plot(options.out)
    _show(call, report(measure(model, name, options)), options.out)


def soak(call: Call) -> None:
    """A server under load for a while; an error if it broke a promise."""
    with _extra("soak"):
        from sonic_kv.bench.soak import measure
        from sonic_kv.bench.soak_record import report

    options, named = call.options(BenchSoakOptions), call.options(ModelOptions)
    result = measure(load_for_decoding(named), named.model or "default model", named, options)
    _show(call, report(result), options.out)
    broken = result.failures()
    if broken:
        raise ServeError(f"the server broke its promises: {'; '.join(broken)}")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """For imports that need an extra of the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench {name} needs {error.name}: pip install 'sonic-kv[bench]'") from error


def _check_plot(out: str | None) -> None:
    """Before the work, not after it."""
    from sonic_kv.bench.report import check_plot

    if out is not None:
        check_plot()


def _show(call: Call, report: "Report", out: str | None = None) -> None:
    """Write the report's files into the folder `out`, if there is one, and print it."""
    if out is not None:
        report.write(out)
        note(f"wrote {out}")
    print(json.dumps(report.data) if call.json else report.text)


BENCH = (
    Command(
        "bench closing",
        "time closing a segment, and decoding over a compressed cache",
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
        "time training in one pass, compared with segment by segment",
        training,
        {"model": ModelOptions, "bench_training": BenchTrainingOptions},
        json="the figures",
    ),
    Command(
        "bench serve",
        "count and time a server's dialogues, compressed and with full context",
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
