"""The `sonic-kv` command: parse, call, print.

Results go to standard output; prompts, logs, progress and errors to standard error. What a command
needs is imported when it runs, so that `--help` never loads torch.
"""

import gzip
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sonic_kv import __version__
from sonic_kv.bench.options import (
    BenchBatchOptions,
    BenchClosingOptions,
    BenchDialogueOptions,
    BenchServeOptions,
    BenchSoakOptions,
    BenchTrainingOptions,
)
from sonic_kv.cli.flags import Given, Parser, add_flags, build, given_flags, read_toml
from sonic_kv.cli.options import ChatOptions, DecodeOptions, DemoOptions, OutputOptions, PlanOptions
from sonic_kv.compress.options import DEFAULT_BUDGET, Budget, SessionConfig
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError, ServeError, SonicError
from sonic_kv.eval.options import EvalOptions
from sonic_kv.integrations.options import RayOptions
from sonic_kv.model.options import AdapterConfig, ModelOptions
from sonic_kv.server.options import ServeOptions
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import nearest, percent_text
from sonic_kv.training.options import LossConfig, PlanConfig, TrainConfig

if TYPE_CHECKING:
    from sonic_kv.model.model import SonicModel

Options = TypeVar("Options")
SMALL_MODEL = 20_000_000  # parameters
INTERRUPTED = 130  # what shells report for Ctrl-C
BROKEN_PIPE = 141  # and for a reader that has gone


@dataclass(frozen=True)
class Call:
    """One command as it was called."""

    sections: Mapping[str, type]
    sources: tuple[Given, ...]  # the TOML file's options, then the flags
    json: bool
    targets: tuple[str, ...]

    @property
    def target(self) -> str | None:
        return self.targets[0] if self.targets else None

    def options(self, cls: type[Options], base: Options | None = None) -> Options:
        """The options of one section of this command, over those of `base` if given."""
        section = self._section(cls)
        sources = self.sources if base is None else ({section: vars(base)}, *self.sources)
        return build(cls, section, *sources, exclusive=cls is Budget)

    def given(self, cls: type) -> dict[str, Any]:
        """The options of one section that were given at all, by field name."""
        section = self._section(cls)
        return {name: value for source in self.sources for name, value in source.get(section, {}).items()}

    def _section(self, cls: type) -> str:
        return next(name for name, section in self.sections.items() if section is cls)


@dataclass(frozen=True)
class Command:
    """A subcommand. A name of two words is a group and its member."""

    name: str
    help: str
    run: Callable[[Call], None]
    sections: Mapping[str, type]
    target: str | None = None  # help of an optional positional argument
    many: bool = False  # it takes one or more of them
    json: str | None = None  # what --json prints
    file_only: tuple[str, ...] = ()  # sections without flags


def load_model(options: ModelOptions) -> "SonicModel":
    """The model that the flags name."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from sonic_kv.model.model import SonicModel

    if options.model is None or not sys.stderr.isatty():
        disable_progress_bar()  # of loading weights: the default model's load in a blink
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {options.device} cannot be used: {reason}") from error
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return SonicModel.from_pretrained(
        options.model, options.adapter, device=device, dtype=dtype, quantization=options.quantization
    )


def load_for_decoding(options: ModelOptions, decoding: DecodeOptions | None = None) -> "SonicModel":
    """The model, for decoding: on a CPU a small one runs on one thread, others would only wait for it.

    `OMP_NUM_THREADS` decides instead where it is set.
    """
    import torch

    model = load_model(options)
    size = sum(weight.numel() for weight in model.base.parameters())
    if model.device.type == "cpu" and size < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if decoding is not None and decoding.compile:
        print("sonic-kv: compiling the decode step …", file=sys.stderr)
        model.compile()
    return model


def chat(call: Call) -> None:
    """A dialogue at the terminal, or one user message per line of standard input."""
    options, session_options = call.options(ChatOptions), call.options(SessionConfig)
    budget = call.options(Budget) if call.given(Budget) else None  # none: the session's own default
    sampling = call.options(SamplingConfig)
    fixed = [*call.given(SessionConfig), *(["system"] if options.system is not None else [])]
    if options.load is not None and fixed:
        raise ConfigError(f"a saved session keeps its own {', '.join(fixed)}: leave it out with --load")
    model = load_for_decoding(call.options(ModelOptions), call.options(DecodeOptions))

    from sonic_kv.cli.chat import Repl
    from sonic_kv.session.session import ChatSession

    if options.load is None:
        session = ChatSession(model, budget, options.system, session_options, sampling)
    else:
        session = ChatSession.load(model, options.load)
        session.sampling = call.options(SamplingConfig, base=session.sampling)
        if budget is not None:
            session.set_budget(budget)
    Repl(model, session, as_json=call.json, source=sys.stdin).run()


def demo(call: Call) -> None:
    """Replay dialogues with full, dropped and compressed history."""
    from sonic_kv.cli import demo as replay
    from sonic_kv.cli.demo_page import page
    from sonic_kv.files import replacing

    options = call.options(DemoOptions)
    result = replay.run(load_for_decoding(call.options(ModelOptions)), options)
    if options.html:
        with replacing(options.html) as file:
            file.write(page(result).encode())
        print(f"sonic-kv: wrote {options.html}", file=sys.stderr)
    print(json.dumps(replay.as_json(result), ensure_ascii=False) if call.json else replay.as_text(result))


def train(call: Call) -> None:
    """Train an adapter; a progress bar on standard error, the adapter's path on standard output."""
    options = call.options(ModelOptions)
    if options.adapter is not None:
        raise ConfigError(
            "train makes a new adapter: leave --adapter out (an unfinished run goes on by itself)"
        )
    if options.device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes: each has its own
        options = replace(options, device=f"cuda:{os.environ['LOCAL_RANK']}")
    config, shape, synth = call.options(TrainConfig), call.options(AdapterConfig), call.options(SynthConfig)
    loss, plan = call.options(LossConfig), call.options(PlanConfig)

    from tqdm import tqdm

    from sonic_kv.training.trainer import Trainer

    trainer = Trainer(load_model(options), shape, synth, config, loss, plan)
    last: dict[str, Any] = {}
    shown = ("importance", "round", "kl", "distillation", "recovery")
    quiet = None if trainer.processes.is_main_process else True
    with tqdm(
        initial=trainer.step, total=config.max_steps, unit="step", file=sys.stderr, disable=quiet
    ) as bar:

        def show(record: dict[str, Any]) -> None:
            last.update(record)
            figures: dict[str, Any] = {name: f"{last[name]:.3f}" for name in shown if name in last}
            if "tokens_per_second" in record:
                figures["tokens/s"] = round(record["tokens_per_second"])
            bar.set_postfix(figures)
            bar.update(record["step"] - bar.n)

        path = trainer.run(show)
    if trainer.processes.is_main_process:
        print(json.dumps({"adapter": str(path), **last}) if call.json else path)


def bench_closing(call: Call) -> None:
    """Closing a segment and decoding, against prefilling and a plain cache."""
    model = load_for_decoding(call.options(ModelOptions))

    from sonic_kv.bench import closing

    results = closing.measure(model, call.options(BenchClosingOptions))
    print(json.dumps(closing.as_json(results)) if call.json else closing.report(results))


def bench_dialogue(call: Call) -> None:
    """Whole dialogues on every method; the report on standard output, files into a folder."""
    options, decoding = call.options(BenchDialogueOptions), call.options(DecodeOptions)
    if decoding.compile and options.batch > 1:
        raise ConfigError("--compile is for one dialogue at a time: leave --batch out")
    model, name = _model_or_shape(options, call.options(ModelOptions), decoding)

    from sonic_kv.bench import dialogue

    if options.out is not None:
        dialogue.check_plot()  # before the work, not after it
    results = dialogue.measure(model, name, options)
    if options.out is not None:
        dialogue.write(results, options.out)
        print(f"sonic-kv: wrote {options.out}", file=sys.stderr)
    print(json.dumps(dialogue.as_json(results)) if call.json else dialogue.report(results))


def bench_batch(call: Call) -> None:
    """Decode steps at growing batch sizes."""
    options = call.options(BenchBatchOptions)
    model, name = _model_or_shape(options, call.options(ModelOptions))

    from sonic_kv.bench import batch

    result = batch.measure(model, name, options)
    print(json.dumps(batch.as_json(result)) if call.json else batch.report(result))


def bench_training(call: Call) -> None:
    """The one-pass training forward against compressing segment by segment."""
    options = call.options(BenchTrainingOptions)
    model, _ = _model_or_shape(options, call.options(ModelOptions))

    from sonic_kv.bench import closing, training

    results = training.measure(model, options)
    print(json.dumps(closing.as_json(results)) if call.json else closing.report(results))


def bench_serve(call: Call) -> None:
    """A server's dialogues, compressed and with full context; the report on standard output, files into a folder."""
    try:
        from sonic_kv.bench import dialogue, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench serve needs {error.name}: pip install 'sonic-kv[bench]'") from error

    options = call.options(BenchServeOptions)
    model, name = _model_or_shape(options, call.options(ModelOptions))
    if options.out is not None:
        dialogue.check_plot()  # before the work, not after it
    result = serve.measure(model, name, options)
    if options.out is not None:
        serve.write(result, options.out)
        print(f"sonic-kv: wrote {options.out}", file=sys.stderr)
    print(json.dumps(serve.as_json(result)) if call.json else serve.report(result))


def bench_soak(call: Call) -> None:
    """A server under load for a while; an error if it broke a promise."""
    try:
        from sonic_kv.bench import soak
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench soak needs {error.name}: pip install 'sonic-kv[bench]'") from error

    options, named = call.options(BenchSoakOptions), call.options(ModelOptions)
    result = soak.measure(load_for_decoding(named), named.model or "default model", named, options)
    if options.out is not None:
        soak.write(result, options.out)
        print(f"sonic-kv: wrote {options.out}", file=sys.stderr)
    print(json.dumps(soak.as_json(result)) if call.json else soak.report(result))
    broken = result.failures()
    if broken:
        raise ServeError(f"the server broke its promises: {'; '.join(broken)}")


def _model_or_shape(
    options: BenchDialogueOptions | BenchBatchOptions | BenchServeOptions | BenchTrainingOptions,
    named: ModelOptions,
    decoding: DecodeOptions | None = None,
) -> tuple["SonicModel", str]:
    """The model to time, and what to call it."""
    compiled = ", compiled decode step" if decoding is not None and decoding.compile else ""
    if options.shape is None:
        return load_for_decoding(named, decoding), (named.model or "default model") + compiled
    if named.model is not None or named.adapter is not None:
        raise ConfigError("--shape makes a model of its own: leave --model and --adapter out")

    import torch

    from sonic_kv.bench.shapes import random_model

    tokenizer = load_model(ModelOptions()).tokenizer
    dtype = getattr(torch, named.dtype or ("float32" if named.device == "cpu" else "bfloat16"))
    model = random_model(options.shape, named.device, dtype, tokenizer, options.seed)
    if compiled:
        model.compile()
    return model, f"{options.shape}, random weights{compiled}"


def evaluate(call: Call) -> None:
    """Run what is not done yet, and write the report; how long it takes on standard error."""
    options, config, named = (
        call.options(EvalOptions),
        call.options(SessionConfig),
        call.options(ModelOptions),
    )
    model = load_model(named)

    from sonic_kv.eval.report import as_text, write
    from sonic_kv.eval.run import Evaluation

    run = Evaluation(model, options, config)
    for name, why in run.work.lacking.items():
        print(f"sonic-kv: without {name}: it needs {why}", file=sys.stderr)
    print(f"sonic-kv: {run.total - run.done} of {run.total} records to make", file=sys.stderr)
    run.run(
        lambda standing: print(f"sonic-kv: {standing.as_text()}", file=sys.stderr), partial(load_model, named)
    )
    try:
        if options.judge_url is not None:
            run.judge(lambda doing, done, total: print(f"sonic-kv: {doing} {done}/{total}", file=sys.stderr))
    finally:
        summary = write(run.results)
    print(json.dumps(summary, ensure_ascii=False) if call.json else as_text(summary, brief=True))
    print(f"sonic-kv: wrote {run.results.folder}/report.md", file=sys.stderr)


def report(call: Call) -> None:
    """Write a run's report anew, or compare runs."""
    from sonic_kv.eval.report import as_text, compare, write
    from sonic_kv.eval.results import Results

    runs = {target: write(Results(target)) for target in call.targets}
    if call.json:
        print(json.dumps(runs, ensure_ascii=False))
    else:
        print(as_text(*runs.values()) if len(runs) == 1 else compare(runs))


def serve(call: Call) -> None:
    """Serve until interrupted."""
    try:
        from sonic_kv.server.run import model_name
        from sonic_kv.server.run import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'sonic-kv[serve]'") from error

    options, ray_options, given = call.options(ServeOptions), call.options(RayOptions), call.given(RayOptions)
    if given and options.engine != "ray":
        raise ConfigError(f"{min(given)} is an option of engine ray: give --engine ray too, or leave it out")
    budget = call.options(Budget) if call.given(Budget) else DEFAULT_BUDGET
    model_options = call.options(ModelOptions)
    load = partial(load_for_decoding, model_options)
    name = model_name(model_options.model)
    compact = SessionConfig(positions="compact") if options.engine == "vllm" else None
    rest = call.options(SessionConfig, compact), budget, call.options(SamplingConfig), options
    if options.engine == "ray":
        from sonic_kv.integrations.ray import serve as run_on_ray

        run_on_ray(load, name, *rest, ray_options)
    else:
        run(load(), name, *rest)


def inspect(call: Call) -> None:
    """Show what is in a file, a folder or a model."""
    from sonic_kv.cli.inspect import as_text
    from sonic_kv.cli.inspect import inspect as describe

    facts = describe(call.target)
    print(json.dumps(facts, ensure_ascii=False) if call.json else as_text(facts))


def plan(call: Call) -> None:
    """Say what compression saves for a model, from its configuration alone."""
    from sonic_kv.cli.plan import as_text
    from sonic_kv.cli.plan import plan as figures

    found = figures(call.options(PlanOptions), call.target or "SmolLM2-135M-Instruct")
    print(json.dumps(found) if call.json else as_text(found))


def data_synth(call: Call) -> None:
    """Write synthetic dialogues, one JSON object a line."""
    from sonic_kv.data.synth import generate_dialogues
    from sonic_kv.files import replacing

    lines = (json.dumps(d, ensure_ascii=False) for d in generate_dialogues(call.options(SynthConfig)))
    out = call.options(OutputOptions).out
    if out is None:
        for line in lines:
            print(line)
        return
    with (
        replacing(out) as file,
        gzip.open(file, "wb") if out.endswith(".gz") else nullcontext(file) as packed,
    ):
        packed.writelines(f"{line}\n".encode() for line in lines)


COMMANDS = (
    Command(
        "chat",
        f"talk to a model; {percent_text(DEFAULT_BUDGET.compression_ratio or 0)} of the past is removed from its cache "
        "unless a budget says otherwise",
        chat,
        {
            "model": ModelOptions,
            "decode": DecodeOptions,
            "chat": ChatOptions,
            "budget": Budget,
            "session": SessionConfig,
            "sampling": SamplingConfig,
        },
        json="one object per reply",
    ),
    Command(
        "demo",
        "replay dialogues with full, dropped and compressed history; writes a page",
        demo,
        {"model": ModelOptions, "demo": DemoOptions},
        json="the figures",
    ),
    Command(
        "train",
        "train an adapter for a model; a run that was stopped goes on from its last checkpoint",
        train,
        {
            "model": ModelOptions,
            "adapter": AdapterConfig,
            "train": TrainConfig,
            "loss": LossConfig,
            "plan": PlanConfig,
            "synth": SynthConfig,
        },
        file_only=("synth",),  # two sections with a seed cannot both have the flag
        json="the adapter's path and the last step's record",
    ),
    Command(
        "bench closing",
        "time closing a segment and decoding on a compressed cache, as paired ratios",
        bench_closing,
        {"model": ModelOptions, "closing": BenchClosingOptions},
        json="the figures",
    ),
    Command(
        "bench batch",
        "time decoding many dialogues at once, and see how many fit",
        bench_batch,
        {"model": ModelOptions, "batch": BenchBatchOptions},
        json="the figures",
    ),
    Command(
        "bench dialogue",
        "time whole dialogues with full, evicted and compressed history, turn by turn",
        bench_dialogue,
        {"model": ModelOptions, "decode": DecodeOptions, "dialogue": BenchDialogueOptions},
        json="the figures, and every time behind them",
    ),
    Command(
        "bench training",
        "time the one-pass training forward against compressing segment by segment",
        bench_training,
        {"model": ModelOptions, "bench_training": BenchTrainingOptions},
        json="the figures",
    ),
    Command(
        "bench serve",
        "count and time a server's dialogues, compressed against full context",
        bench_serve,
        {"model": ModelOptions, "bench_serve": BenchServeOptions},
        json="the figures, and every time behind them",
    ),
    Command(
        "bench soak",
        "keep a server at its memory limit with dialogues that come, branch and leave, and compare every reply",
        bench_soak,
        {"model": ModelOptions, "soak": BenchSoakOptions},
        json="everything that was counted",
    ),
    Command(
        "eval",
        "compare methods on multi-turn dialogues; a run that was stopped goes on where it was",
        evaluate,
        {"model": ModelOptions, "eval": EvalOptions, "session": SessionConfig},
        json="the summary",
    ),
    Command(
        "report",
        "write the report of a run of eval anew, or compare several",
        report,
        {},
        target="folder of a run",
        many=True,
        json="the summaries",
    ),
    Command(
        "serve",
        "serve a model over HTTP, as OpenAI's API does, with compressed and durable dialogues; a page at /",
        serve,
        {
            "model": ModelOptions,
            "serve": ServeOptions,
            "ray": RayOptions,
            "budget": Budget,
            "session": SessionConfig,
            "sampling": SamplingConfig,
        },
    ),
    Command(
        "inspect",
        "show what is in a session file, an adapter or a model",
        inspect,
        {},
        target="file, folder or hub id (default: the default model)",
        json="the facts",
    ),
    Command(
        "plan",
        "say what compression saves for a model: bytes, dialogues in a memory, and where it begins to pay",
        plan,
        {"sizes": PlanOptions},
        target="folder, config.json, hub id or well-known name of a model (default: SmolLM2-135M-Instruct)",
        json="the figures",
    ),
    Command(
        "data synth",
        "write synthetic dialogues, one JSON object a line",
        data_synth,
        {"output": OutputOptions, "synth": SynthConfig},
    ),
)
GROUPS = {"bench": "what compression costs and saves", "data": "dialogue files"}
# One TOML file may hold the sections of several commands: each uses its own, all are checked.
SECTIONS = {name: section for command in COMMANDS for name, section in command.sections.items()}


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="sonic-kv", description="Dialogues with a compressed KV cache.")
    parser.add_argument("--version", action="version", version=f"sonic-kv {__version__}")
    top = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    groups = {
        name: top.add_parser(name, help=help, description=help).add_subparsers(
            metavar="COMMAND", required=True
        )
        for name, help in GROUPS.items()
    }
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        help = command.help.replace("%", "%%")  # argparse formats this one, and not the description
        sub = (groups[group] if group else top).add_parser(name, help=help, description=command.help)
        shown = " TARGET ..." if command.many else " [TARGET]"
        sub.usage = f"{sub.prog} [options]" + (shown if command.target else "")
        sub.set_defaults(command=command, parser=sub)
        if command.target:
            many = "+" if command.many else "?"
            sub.add_argument("target", nargs=many, metavar="TARGET", help=command.target)
        if command.sections:
            more = "".join(f" and those of [{section}]" for section in command.file_only)
            help = f"TOML file with these options{more}; flags win over it"
            sub.add_argument("--config", metavar="FILE", help=help)
        if command.json:
            sub.add_argument("--json", action="store_true", help=f"print JSON: {command.json}")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for section, cls in command.sections.items():
            if section not in command.file_only:
                add_flags(sub, section, cls)
    return parser


def parse(arguments: Sequence[str]) -> tuple[Command, Call]:
    """The command and how it was called.

    Raises:
        ConfigError: an unknown command, flag or option; the nearest known one is named.
    """
    found, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise ConfigError(f"unknown argument {unknown[0]}{nearest(flag, found.parser.flags())}")
    config = getattr(found, "config", None)
    sources: tuple[Given, ...] = (given_flags(found),)
    if config is not None:
        sources = (read_toml(config, SECTIONS), *sources)
    command: Command = found.command
    target = getattr(found, "target", None)
    targets = tuple(target) if isinstance(target, list) else () if target is None else (target,)
    return command, Call(command.sections, sources, json=getattr(found, "json", False), targets=targets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command, call = parse(arguments)
        command.run(call)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        return BROKEN_PIPE
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        expected = isinstance(error, SonicError)
        text = str(error) if expected else f"{type(error).__name__}: {error} (see --debug)"
        print(f"sonic-kv: error: {' '.join(text.split())}", file=sys.stderr)
        return error.exit_code if isinstance(error, SonicError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
