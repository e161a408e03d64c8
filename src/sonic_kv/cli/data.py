"""`sonic-kv data …`: dialogue files."""

import gzip
import json
from contextlib import nullcontext

from sonic_kv.cli.command import Call, Command
from sonic_kv.cli.options import OutputOptions
from sonic_kv.data.options import SynthConfig


def synth(call: Call) -> None:
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


SYNTH = Command(
    "data synth",
    "write synthetic dialogues, one JSON object a line",
    synth,
    {"output": OutputOptions, "synth": SynthConfig},
)
