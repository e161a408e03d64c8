"""The `sonic-kv` command: parse, run, print.

Results go to standard output; prompts, logs, progress and errors to standard error. What a command
needs is imported when it runs, so that `--help` never loads torch.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace

from sonic_kv import __version__
from sonic_kv.cli.bench import BENCH
from sonic_kv.cli.chat import CHAT
from sonic_kv.cli.command import Call, Command
from sonic_kv.cli.data import DATA
from sonic_kv.cli.demo import DEMO
from sonic_kv.cli.evaluate import EVAL, REPORT
from sonic_kv.cli.flags import Given, Parser, add_flags, as_toml, given_flags, in_a_file, read_toml
from sonic_kv.cli.inspect import INSPECT
from sonic_kv.cli.plan import PLAN
from sonic_kv.cli.serve import SERVE
from sonic_kv.cli.train import TRAIN
from sonic_kv.errors import ConfigError, SonicError
from sonic_kv.text import nearest

SUMMARY = "Long chats in little memory: a dialogue's KV cache is compressed turn by turn."
INTERRUPTED = 130  # what shells report for Ctrl-C
BROKEN_PIPE = 141  # and for a reader that has gone
COMMANDS = (CHAT, DEMO, TRAIN, *BENCH, EVAL, REPORT, SERVE, INSPECT, PLAN, *DATA)
GROUPS = {"bench": "measure what compression costs and saves", "data": "make and convert dialogue files"}
# One TOML file may hold the sections of several commands: each uses its own, all are checked.
SECTIONS = {name: section for command in COMMANDS for name, section in command.sections.items()}


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="sonic-kv", description=SUMMARY)
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
        _add_arguments(sub, command)
    return parser


def _add_arguments(sub: Parser, command: Command) -> None:
    """Everything that one command takes."""
    shown = " TARGET ..." if command.many else " [TARGET]"
    sub.usage = f"{sub.prog} [options]" + (shown if command.target else "")
    sub.set_defaults(command=command, parser=sub)
    if command.target:
        many = "+" if command.many else "?"
        sub.add_argument("target", nargs=many, metavar="TARGET", help=command.target)
    if command.sections:
        help = "TOML file with options, those without a flag too; flags win over it"
        sub.add_argument("--config", metavar="FILE", help=help)
        help = "print all options as such a file, and end"
        sub.add_argument("--print-config", action="store_true", help=help)
    if command.json:
        sub.add_argument("--json", action="store_true", help=f"print JSON: {command.json}")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for section, cls in command.sections.items():
        add_flags(sub, section, cls, flags=section not in command.file_only)


def parse(arguments: Sequence[str]) -> tuple[Command, Call]:
    """The command and how it was called.

    Raises:
        ConfigError: an unknown command, flag or option; the nearest known one is named.
    """
    found, unknown = build_parser().parse_known_args(arguments)
    command: Command = found.command
    if unknown:
        flag = unknown[0].partition("=")[0]
        hint = in_a_file(flag, command.sections) or nearest(flag, found.parser.flags())
        raise ConfigError(f"unknown argument {unknown[0]}{hint}")
    config = getattr(found, "config", None)
    sources: tuple[Given, ...] = (given_flags(found),)
    if config is not None:
        sources = (read_toml(config, SECTIONS), *sources)
    target = getattr(found, "target", None)
    targets = tuple(target) if isinstance(target, list) else () if target is None else (target,)
    if getattr(found, "print_config", False):
        command = replace(command, run=print_config)
    return command, Call(command.sections, sources, json=getattr(found, "json", False), targets=targets)


def print_config(call: Call) -> None:
    """Print the options of a command as a TOML file."""
    print(as_toml({section: call.options(cls) for section, cls in call.sections.items()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not sys.stderr.isatty():
        os.environ.setdefault(
            "TQDM_DISABLE", "1"
        )  # no bars of other libraries in a file; read at tqdm's import
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
