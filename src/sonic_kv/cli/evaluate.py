"""`sonic-kv eval` and `sonic-kv report`: methods compared on benchmarks."""

import json
from functools import partial
from importlib.util import find_spec

from sonic_kv.cli.command import Call, Command, note
from sonic_kv.cli.loading import load_model
from sonic_kv.compress.options import SessionConfig
from sonic_kv.eval.options import EvalOptions
from sonic_kv.model.options import ModelOptions


def evaluate(call: Call) -> None:
    """Run what is not done yet, and write the report; how long it takes on standard error."""
    options, config = call.options(EvalOptions), call.options(SessionConfig)
    named = call.options(ModelOptions)
    model = load_model(named)

    from sonic_kv.eval.report import as_text, write
    from sonic_kv.eval.run import Evaluation

    run = Evaluation(model, options, config)
    for name, why in run.work.lacking.items():
        note(f"without {name}: it needs {why}")
    if only_named := run.work.only_named:
        note(f"not run unless named (--methods): {', '.join(only_named)}")
    tokens = sum(run.tokens_left().values())
    note(
        f"{run.total - run.done} of {run.total} records to make, {tokens:,} tokens to read; how long that takes is "
        "known after the first dialogue"
    )
    run.run(lambda standing: note(standing.as_text()), partial(load_model, named))
    try:
        if options.judge_url is not None:
            run.judge(lambda doing, done, total: note(f"{doing} {done}/{total}"))
    finally:
        summary = write(run.results)
    print(json.dumps(summary, ensure_ascii=False) if call.json else as_text(summary, brief=True))
    note(f"wrote {run.results.folder}/report.md")
    if find_spec("matplotlib") is None:
        note(
            "without a picture: pip install 'sonic-kv[eval]' brings matplotlib, and sonic-kv report draws it"
        )


def report(call: Call) -> None:
    """Write a run's report anew, or compare runs."""
    from sonic_kv.eval.report import as_text, compare, write
    from sonic_kv.eval.results import Results

    runs = {target: write(Results(target)) for target in call.targets}
    if call.json:
        print(json.dumps(runs, ensure_ascii=False))
    else:
        print(as_text(*runs.values()) if len(runs) == 1 else compare(runs))


EVAL = Command(
    "eval",
    "compare ways to shrink the past on dialogues; a run that was stopped goes on where it was",
    evaluate,
    {"model": ModelOptions, "eval": EvalOptions, "session": SessionConfig},
    file_only=("session",),
    json="the summary",
)
REPORT = Command(
    "report",
    "write the report of an evaluation anew, or compare several",
    report,
    {},
    target="folder of a run",
    many=True,
    json="the summaries",
)
