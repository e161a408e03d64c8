"""`sonic-kv data …`: dialogue files."""

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

from sonic_kv.cli.command import Call, Command, note
from sonic_kv.cli.options import ConvertOptions, OutputOptions
from sonic_kv.data.options import SynthConfig


def synth(call: Call) -> None:
    """Write synthetic dialogues."""
    from sonic_kv.data.synth import generate_dialogues

    _write(generate_dialogues(call.options(SynthConfig)), call.options(OutputOptions).out)


def convert(call: Call) -> None:
    """Write the dialogues of files of any known form in this project's."""
    from sonic_kv.data.dialogues import read_source

    skip = call.options(ConvertOptions).skip_malformed
    found = (one for target in call.targets for one in read_source(target, skip_malformed=skip))
    _write(found, call.options(OutputOptions).out)


def _write(dialogues: Iterable[dict[str, Any]], out: str | None) -> None:
    """One JSON object a line, into a file or to standard output; how many there are is said at the end."""
    from sonic_kv.files import replacing

    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for one in dialogues:
            count += 1
            yield json.dumps(one, ensure_ascii=False, default=str)

    if out is None:
        for line in lines():
            print(line)
    else:
        with (
            replacing(out) as file,
            gzip.open(file, "wb") if out.endswith(".gz") else nullcontext(file) as packed,
        ):
            packed.writelines(f"{line}\n".encode(errors="replace") for line in lines())
    note(f"dialogues written: {count}")


DATA = (
    Command(
        "data synth",
        "write synthetic dialogues, one JSON object a line",
        synth,
        {"output": OutputOptions, "synth": SynthConfig},
    ),
    Command(
        "data convert",
        "write dialogues of other forms (ShareGPT, Parquet, MathChat, GECOR, …) as JSON lines of messages",
        convert,
        {"output": OutputOptions, "convert": ConvertOptions},
        target="file, folder of a saved dataset, or hub id of a dataset",
        many=True,
    ),
)
