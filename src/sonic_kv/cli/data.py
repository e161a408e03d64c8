"""`sonic-kv data …`: dialogue files."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from sonic_kv.cli.command import Call, Command, note
from sonic_kv.cli.options import AnswerOptions, ConvertOptions, OutputOptions
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError, FileError
from sonic_kv.model.options import ModelOptions
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import Progress


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


def answer(call: Call) -> None:
    """Write dialogues anew, with the model's own replies; go on where a run that was stopped left off."""
    from sonic_kv.cli.loading import load_for_decoding
    from sonic_kv.data.dialogues import read_source
    from sonic_kv.files import append_lines
    from sonic_kv.session.own_replies import own_replies

    options, out = call.options(AnswerOptions), call.options(OutputOptions).out
    if out is None:
        raise ConfigError("data answer needs --out FILE, so that it can go on when it was stopped")
    if Path(out).is_dir() or not Path(out).parent.is_dir():
        raise FileError(
            f"cannot write {out}: {'it is a folder' if Path(out).is_dir() else 'there is no such folder'}"
        )
    found = (one["messages"] for target in call.targets for one in read_source(target, skip_malformed=True))
    dialogues = list(islice(found, options.limit or None))
    model, sampling = load_for_decoding(call.options(ModelOptions)), call.options(SamplingConfig)
    about = {
        "sources": list(call.targets),
        "dialogues": hashlib.sha256(json.dumps(dialogues, default=str).encode()).hexdigest(),
        "model": model.fingerprint(),
        **asdict(sampling),
        **asdict(options),
    }
    part = Path(f"{out}.part")
    done = _begun(part, json.loads(json.dumps(about)))
    replies = own_replies(
        model,
        dialogues[len(done) :],
        sampling,
        first=len(done),
        max_tokens=options.max_tokens,
        together=options.together,
    )
    with Progress("dialogue", len(dialogues), done=len(done)) as progress:
        for messages in replies:
            done.append({"messages": messages})
            append_lines(part, done[-1:])
            progress.add()
    _write((one for one in done if one["messages"]), out)
    part.unlink(missing_ok=True)


def _begun(part: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The dialogues that a run which was stopped has written. Its file begins with what it is about.

    Raises:
        ConfigError: it was another run.
    """
    from sonic_kv.files import append_lines, drop_torn_line

    if not part.exists():
        append_lines(part, [about])
        return []
    drop_torn_line(part)
    try:
        with part.open(encoding="utf-8") as file:  # `splitlines` also splits at signs that JSON may hold
            lines = [json.loads(line) for line in file]
    except ValueError:
        lines = []
    if lines[:1] != [about]:
        raise ConfigError(f"{part} is of another run: delete it, or choose another --out")
    return lines[1:]


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
    Command(
        "data answer",
        "write dialogues anew with replies of a model's own; a run that was stopped goes on where it was",
        answer,
        {"model": ModelOptions, "output": OutputOptions, "answer": AnswerOptions, "sampling": SamplingConfig},
        target="file, folder of a saved dataset, or hub id of a dataset",
        many=True,
    ),
)
