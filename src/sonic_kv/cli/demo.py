"""`sonic-kv demo`: the same dialogues with full, dropped and compressed history; a table and a page."""

import json

from sonic_kv.bench.options import DemoOptions
from sonic_kv.cli.command import Call, Command, note
from sonic_kv.cli.loading import load_for_decoding
from sonic_kv.model.options import ModelOptions


def run(call: Call) -> None:
    """Replay the dialogues, write the page, print the table."""
    from sonic_kv.bench import demo
    from sonic_kv.bench.demo_page import page
    from sonic_kv.files import replacing

    options = call.options(DemoOptions)
    result = demo.run(load_for_decoding(call.options(ModelOptions)), options)
    if options.html:
        with replacing(options.html) as file:
            file.write(page(result).encode())
        note(f"wrote {options.html}")
    report = demo.report(result)
    print(json.dumps(report.data, ensure_ascii=False) if call.json else report.text)


DEMO = Command(
    "demo",
    "replay dialogues with full, dropped and compressed history, and write a page that compares them",
    run,
    {"model": ModelOptions, "demo": DemoOptions},
    json="the figures",
)
