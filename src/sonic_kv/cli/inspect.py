"""`sonic-kv inspect`: what is in a file, a folder or a model."""

import json

from sonic_kv.cli.command import Call, Command


def run(call: Call) -> None:
    """Show the facts."""
    from sonic_kv.cli.facts import as_text, facts

    found = facts(call.target)
    print(json.dumps(found, ensure_ascii=False) if call.json else as_text(found))


INSPECT = Command(
    "inspect",
    "show what is in a session file, an adapter or a model",
    run,
    {},
    target="file, folder or hub id (default: the default model)",
    json="the facts",
)
