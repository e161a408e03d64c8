"""Suites, records and reports: the authors' formats, resuming, failures, the command."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import DIALOGUE, TEMPLATE, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.compress.options import SessionConfig
from sonic_kv.errors import ConfigError, DataError, FileError
from sonic_kv.eval import run as runs
from sonic_kv.eval.damage import rank_correlation
from sonic_kv.eval.figures import Draws, Figures, figure, summarise
from sonic_kv.eval.methods import Closer, Method, Steps
from sonic_kv.eval.options import EvalOptions
from sonic_kv.eval.plots import COLOURS, plot
from sonic_kv.eval.progress import RunProgress, Standing
from sonic_kv.eval.report import as_text, write
from sonic_kv.eval.results import Results
from sonic_kv.eval.run import Evaluation, paths
from sonic_kv.eval.suites import SORTS, Case, Question, load
from sonic_kv.eval.turns import Row
from sonic_kv.model.nats import DamageScale

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "bench"
CONFIG = SessionConfig(min_segment_tokens=32, max_segment_tokens=64)

MT_BENCH = {
    "task": "CR",
    "id": 7,
    "history": [
        {"user": "Write a poem.", "bot": "Roses."},
        {"user": "Make it longer.", "bot": "Roses, and more."},
    ],
}
GECOR = {
    "id": "g",
    "messages": [
        {"role": "user", "content": "A cheap restaurant, please."},
        {"role": "assistant", "content": "Nandos is cheap."},
        {"role": "user", "content": "What is their address?"},
        {"role": "assistant", "content": "Mill Road."},
        {"role": "user", "content": "Thank you!"},
        {"role": "assistant", "content": "Bye."},
    ],
    "meta": {
        "user_annotations": [
            {
                "transcript": text,
                "transcript_complete": complete,
                "transcript_with_ellipsis": "",
                "transcript_with_coreference": coreference,
            }
            for text, complete, coreference in (
                ("A cheap restaurant, please.", "A cheap restaurant, please.", ""),
                ("What is their address?", "What is the address of Nandos?", "What is their address?"),
                ("Thank you!", "Thank you!", ""),
            )
        ]
    },
}
MATH = {
    "id": "m",
    "messages": [
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "2 + 3 = 5"},
        {"role": "user", "content": "And twice that?"},
        {"role": "assistant", "content": "It is 10."},
    ],
    "meta": {"finals": ["5", "10"]},
}
LONGEVAL = {
    "id": "l",
    "messages": [
        {"role": "user", "content": "Let us talk about the history of tea."},
        {"role": "assistant", "content": "Gladly."},
        {"role": "user", "content": "What was the first topic?"},
    ],
    "meta": {"answer": "The history of tea", "topics": ["The history of tea"]},
}
OWN = {
    "id": "d",
    "messages": DIALOGUE,
    "questions": [{"message": 7, "answer": "Oslo", "kind": "place", "distance": 3}],
}


def written(folder: Path, *lines: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def only_case(name: str, path: Path) -> Case:
    (case,) = load(name, str(path), 0, 0, 0).cases
    return case


def test_mt_bench_101_is_read_as_its_authors_wrote_it(tmp_path: Path) -> None:
    case = only_case("mt-bench-101", written(tmp_path, MT_BENCH))
    assert (case.id, case.group) == ("CR-7", "CR")
    assert [m["content"] for m in case.messages][:2] == ["Write a poem.", "Roses."]
    assert case.judged == (3,)  # CR's first turn sets the scene
    scored = only_case("mt-bench-101", written(tmp_path, {**MT_BENCH, "task": "GR"}))
    assert scored.judged == (1, 3)


def test_safe_dial_bench_is_grouped_by_scene(tmp_path: Path) -> None:
    line = {**MT_BENCH, "scene": "Fairness", "method": "role play", "model_type": "x"}
    case = only_case("safe-dial-bench", written(tmp_path, line))
    assert (case.group, case.judged) == ("Fairness", (1, 3))


def test_gecor_asks_for_the_last_turn_that_needs_the_dialogue(tmp_path: Path) -> None:
    case = only_case("coreference", written(tmp_path, GECOR, name="g.jsonl.gz"))
    assert case.questions == (Question(3, "What is the address of Nandos?", "coreference", checked=False),)
    assert [m["content"] for m in case.messages[:2]] == ["A cheap restaurant, please.", "Nandos is cheap."]
    assert case.messages[2]["content"].endswith("What is their address?")
    assert case.messages[3]["content"] == "What is the address of Nandos?"


def test_math_chat_has_the_final_numbers(tmp_path: Path) -> None:
    case = only_case("gsm8k-var", written(tmp_path, MATH))
    assert [(q.message, q.answer, q.number) for q in case.questions] == [(1, "5", True), (3, "10", True)]


def test_longeval_asks_for_the_first_topic(tmp_path: Path) -> None:
    case = only_case("longeval-topics", written(tmp_path, LONGEVAL))
    assert case.questions == (Question(3, "The history of tea", "first topic", distance=1),)
    assert case.messages[3] == {"role": "assistant", "content": "The history of tea"}
    assert case.group == "1 topics"


def test_questions_in_the_projects_own_form(tmp_path: Path) -> None:
    case = only_case("core-res", written(tmp_path, OWN))
    assert case.questions == (Question(7, "Oslo", "place", 3),)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("mt-bench-101", "{", "line 2"),
        ("mt-bench-101", [], "line 2: needs a JSON object"),
        ("mt-bench-101", {"task": "CR", "id": 1}, "line 2: needs an object with a list"),
        (
            "mt-bench-101",
            {"task": "CR", "id": 1, "history": [{"user": "x"}]},
            "line 2: message 1 needs the keys",
        ),
        ("mt-bench-101", {**MT_BENCH, "history": []}, "line 2: the dialogue is empty"),
        ("mt-bench-101", MT_BENCH, "stands there twice"),
        ("coreference", {**GECOR, "meta": {}}, "line 2: no 'user_annotations'"),
        ("gsm8k-var", {**MATH, "meta": {}}, "line 2: no 'final'"),
        ("core-res", {**OWN, "questions": [{"message": 0, "answer": "x"}]}, "line 2: question: message 0"),
        ("core-res", {**OWN, "messages": DIALOGUE[1:]}, "line 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, name: str, bad: Any, message: str) -> None:
    good = {"mt-bench-101": MT_BENCH, "coreference": GECOR, "gsm8k-var": MATH, "core-res": OWN}[name]
    with pytest.raises(DataError, match=message):
        load(name, str(written(tmp_path, good, bad)), 0, 0, 0)


def test_a_suite_without_its_file_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match="--data mt-bench-101=PATH"):
        load("mt-bench-101", None, 0, 0, 0)
    with pytest.raises(ConfigError, match="unknown suite 'mt-bench'; did you mean mt-bench-101"):
        load("mt-bench", None, 0, 0, 0)
    with pytest.raises(DataError, match="cannot be read"):
        load("mt-bench-101", "nowhere.jsonl", 0, 0, 0)


@pytest.mark.skipif(not SHARED.exists(), reason="the files are not here")
@pytest.mark.parametrize(
    ("name", "path", "count"),
    [
        ("mt-bench-101", "mtbench101/mtbench101.jsonl", 1388),
        ("coreference", "bench_gecor_camrest.jsonl.gz", 552),
        ("gsm8k-var", "bench_mathchat_followup.jsonl.gz", 1319),
        ("gsm8k-socratic", "bench_gsm8k_socratic_test_multiturn.jsonl.gz", 1319),
        ("longeval-topics", "bench_longeval_topics_1.jsonl.gz", 50),
        ("longeval-topics", "bench_longeval_topics_5.jsonl.gz", 50),
    ],
)
def test_the_public_files_load(name: str, path: str, count: int) -> None:
    found = load(name, str(SHARED / path), 0, 0, 0).cases
    assert len(found) >= count
    if name == "mt-bench-101":
        assert len({case.group for case in found}) == 13
    assert len(load(name, str(SHARED / path), 50, 0, 0).cases) == 50


def options(folder: Path, **changes: Any) -> EvalOptions:
    given = {"out": str(folder / "out"), "limit": 3, "exchanges": 3, "ratios": (0.6,), "max_tokens": 500}
    return EvalOptions(**{**given, "methods": ("sonic", "sliding"), "batch_size": 2, **changes})


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def test_a_run_is_recorded_dialogue_by_dialogue(tmp_path: Path, model: Any) -> None:
    evaluation = Evaluation(model, options(tmp_path), CONFIG)
    evaluation.run()
    records = list(evaluation.results)
    assert len(records) == evaluation.total == 3 * 5  # full, none, other-history, sonic, sliding
    assert {record["status"] for record in records} == {"ok"}
    for record in records:
        assert len(record["turns"]) == 3
        assert (record["memory"][-1] == 0) == (record["method"] == "none")
    summary = write(evaluation.results)["suites"]["synthetic"]
    rows = {row["method"]: row for row in summary["methods"]}
    assert rows["full"]["recovery"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert rows["none"]["recovery"]["value"] == 0.0
    assert rows["sonic"]["entries"] == rows["sliding"]["entries"] < rows["full"]["entries"]
    assert summary["controls"][1]["holds"]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, model: Any) -> None:
    whole = Evaluation(model, options(tmp_path / "whole"), CONFIG)
    whole.run()
    stopped = Evaluation(model, options(tmp_path / "stopped"), CONFIG)

    def stop(standing: Standing) -> None:
        if len(list(stopped.results)) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(stop)
    done = stopped.results.path.read_text()
    assert 0 < len(done.splitlines()) < stopped.total
    stopped.results.path.write_text(done + '{"suite": "synth')  # killed while it wrote
    again = Evaluation(model, options(tmp_path / "stopped", batch_size=7), CONFIG)
    assert again.done == len(done.splitlines())
    again.run()
    assert again.results.path.read_text().startswith(done)

    def content(evaluation: Evaluation) -> dict[Any, Any]:
        return {runs.key(r): [t["nll"] for t in r["turns"]] for r in evaluation.results}

    expected = content(whole)
    assert content(again).keys() == expected.keys()
    for key, losses in content(again).items():
        assert losses == pytest.approx(expected[key], abs=1e-3)
    finished = again.results.path.read_text()
    Evaluation(model, options(tmp_path / "stopped"), CONFIG).run()
    assert again.results.path.read_text() == finished


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_workers_end_with_a_killed_parent() -> None:
    program = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from sonic_kv.eval.run import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("fork"), end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it is there
        parent.kill()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def test_a_folder_of_another_run_is_refused(tmp_path: Path, model: Any) -> None:
    Evaluation(model, options(tmp_path), CONFIG)
    with pytest.raises(ConfigError, match=r"another run \(it differs in max_tokens\): choose another --out"):
        Evaluation(model, options(tmp_path, max_tokens=400), CONFIG)
    with pytest.raises(ConfigError, match="suite synthetic"):
        Evaluation(model, options(tmp_path, exchanges=4), CONFIG)
    Evaluation(
        model, options(tmp_path, methods=("h2o",), ratios=(0.5,), limit=2), CONFIG
    )  # more of the same run


def test_a_method_that_crashes_on_one_dialogue_is_recorded_there(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = False

    class Fragile(Closer):
        def close(self, row: Row) -> Steps:
            if not healthy and row.token_ids == worst[: len(row.token_ids)]:
                raise RuntimeError("the reactor is leaking")
            yield from sliding.start(self.model, self.budget, self.config, self.donor).close(row)

    sliding = runs.METHODS["sliding"]
    monkeypatch.setitem(cast(Any, runs.METHODS), "sliding", Method(Fragile))
    evaluation = Evaluation(model, options(tmp_path), CONFIG)
    scripts = evaluation.work.scripts["synthetic"]
    worst = scripts[1].token_ids
    evaluation.run()
    failed = [record for record in evaluation.results if record["status"] == "failed"]
    assert [(r["method"], r["case"], r["error"]) for r in failed] == [
        ("sliding", scripts[1].case.id, "RuntimeError: the reactor is leaking")
    ]
    summary = write(evaluation.results)
    row = next(r for r in summary["suites"]["synthetic"]["methods"] if r["method"] == "sliding")
    assert (row["cases"], row["failed"]) == (2, 1)
    assert "failed 1 times: sliding: RuntimeError: the reactor is leaking" in as_text(summary)
    healthy = True
    again = Evaluation(model, options(tmp_path), CONFIG)
    again.run()
    assert {record["status"] for record in again.results} == {"ok"}


def test_rows_side_by_side_give_the_records_of_rows_one_by_one(tmp_path: Path) -> None:
    model = tiny_model("llama")  # with Qwen3's key norm, Knorm has nothing but ties
    changes = {"methods": (), "limit": 3, "ratios": (0.5, 0.8), "generate": "questions", "max_new_tokens": 6}
    together = Evaluation(model, options(tmp_path / "a", batch_size=200, **changes), CONFIG)
    alone = Evaluation(model, options(tmp_path / "b", batch_size=1, **changes), CONFIG)
    for evaluation in (together, alone):
        evaluation.run()
    records = {runs.key(record): record for record in alone.results}
    assert len(records) == alone.total == together.total
    assert len(alone.work.batches()) == alone.total
    assert len(together.work.batches()) == 2  # the first dialogue alone, then the others together
    assert any(record["replies"] for record in records.values())
    for record in together.results:
        other = records[runs.key(record)]
        for ours, theirs in zip(record.pop("turns"), other.pop("turns"), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), runs.key(record)
        for ours, theirs in zip(record.pop("questions"), other.pop("questions"), strict=True):
            assert ours.pop("nll") == pytest.approx(theirs.pop("nll"), rel=1e-4, abs=1e-4)
            assert ours == theirs
        assert record.pop("seconds") > 0.0
        assert {**record, "seconds": 0} == {
            **other,
            "seconds": 0,
        }  # entries, written replies, everything else


def test_a_method_that_breaks_its_cache_takes_no_other_one_down(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Closer):
        def close(self, row: Row) -> Steps:
            yield from sliding.start(self.model, self.budget, self.config, self.donor).close(row)
            row.cache.layers[-1].hold(torch.zeros(2, 4), torch.zeros(2, 4), (1, 1))  # the next forward fails

    sliding = runs.METHODS["sliding"]
    monkeypatch.setitem(cast(Any, runs.METHODS), "sliding", Method(Broken))
    evaluation = Evaluation(model, options(tmp_path, batch_size=20), CONFIG)
    evaluation.run()
    assert len(evaluation.work.batches()) == 2
    for record in evaluation.results:
        assert record["status"] == ("failed" if record["method"] == "sliding" else "ok")


def test_methods_that_cannot_run_are_named(tmp_path: Path) -> None:
    plain = tiny_model(adapter=False)
    with pytest.raises(ConfigError, match="method sonic needs an adapter"):
        Evaluation(plain, options(tmp_path), CONFIG)
    with pytest.raises(ConfigError, match=r"unknown method 'snapvk'; did you mean snapkv"):
        Evaluation(plain, options(tmp_path, methods=("snapvk",)), CONFIG)
    evaluation = Evaluation(plain, options(tmp_path, methods=()), CONFIG)
    assert evaluation.work.lacking["sonic"] == "an adapter"
    assert "h2o" in {cell.name for cell in evaluation.work.cells}


def test_dialogues_that_are_too_long_are_cut_behind_an_exchange(tmp_path: Path, model: Any) -> None:
    path = written(tmp_path, OWN)
    given = options(tmp_path, suites=("core-res",), data=(str(path),), max_tokens=100)
    (script,) = Evaluation(model, given, CONFIG).work.scripts["core-res"]
    assert len(script.token_ids) <= 100
    assert len(script.replies) == 2
    assert script.questions == []
    with pytest.raises(DataError, match="raise --max-tokens"):
        Evaluation(model, options(tmp_path, suites=("core-res",), data=(str(path),), max_tokens=20), CONFIG)


def test_an_answer_is_found_in_the_reply(tmp_path: Path, model: Any) -> None:
    path = written(tmp_path, OWN)
    given = options(tmp_path, suites=("core-res",), data=(f"core-res={path}",))
    (script,) = Evaluation(model, given, CONFIG).work.scripts["core-res"]
    ((_, at),) = script.questions
    assert model.tokenizer.decode([script.token_ids[i] for i in at]) == "Oslo"


# Figures


def test_the_bootstrap_covers_a_known_mean() -> None:
    draws = Draws(400, seed=1)
    values = [float(i % 2) for i in range(400)]
    found = figure(draws.total(values) / draws.total([1.0] * 400))
    assert found is not None
    assert found["value"] == 0.5
    half = 1.96 * 0.5 / 20
    assert found["low"] == pytest.approx(0.5 - half, abs=0.006)
    assert found["high"] == pytest.approx(0.5 + half, abs=0.006)


def fake_records(
    suite: str, losses: dict[str, Callable[[int], float]], count: int = 40
) -> list[dict[str, Any]]:
    """Records with these losses by method, for figures whose right value is known."""
    return [
        {
            "suite": suite,
            "case": str(case),
            "group": "all",
            "method": method,
            "ratio": None if method in ("full", "none", "other-history") else 0.5,
            "status": "ok",
            "memory": [3.0],
            "history": 6,
            "questions": [],
            "seconds": 0.0,
            "turns": [
                {"turn": 1, "closed": 0, "tokens": 10, "nll": 99.0, "kl": 0.0, "agree": 9, "right": 9},
                {"turn": 2, "closed": 1, "tokens": 10, "nll": loss(case), "kl": 0.0, "agree": 9, "right": 9},
            ],
        }
        for method, loss in losses.items()
        for case in range(count)
    ]


def test_recovery_is_the_share_of_what_history_is_worth() -> None:
    records = fake_records(
        "b",
        {
            "full": lambda i: 10.0 + i % 3,
            "none": lambda i: 20.0 + i % 5,
            "sonic": lambda i: 12.0 + i % 3,
            "sliding": lambda i: 18.0 + i % 5,
        },
    )
    found = summarise(records, 0)["b"]
    rows = {row["method"]: row for row in found["methods"]}
    none, full = sum(20.0 + i % 5 for i in range(40)), sum(10.0 + i % 3 for i in range(40))
    assert rows["sonic"]["recovery"]["value"] == pytest.approx((none - full - 80) / (none - full))
    (difference,) = found["paired"]
    assert difference["recovery"]["value"] == pytest.approx(
        rows["sonic"]["recovery"]["value"] - rows["sliding"]["recovery"]["value"]
    )
    assert difference["recovery"]["low"] > 0


def report_of(records: list[dict[str, Any]], **options: Any) -> list[str]:
    """The lines of a report of these records."""
    suites = summarise(records, 0)
    config = {
        "model": "m",
        "fixed": {"model": {"weights": "w"}, "adapter": None, "version": "1", "max_tokens": 9},
        "machine": {"device": "cpu", "torch": "2"},
        "options": {"seed": 0},
        "lacking": {},
        "skipped": {},
        "suites": {name: {"source": "here"} for name in suites},
    }
    return as_text({"config": config, "suites": suites}, **options).splitlines()


def test_several_suites_stand_in_one_table() -> None:
    kl = {"full": 0.0, "none": 4.0, "sonic": 1.0, "sliding": 2.0}
    records = [
        {**record, "turns": [{**turn, "kl": kl[record["method"]]} for turn in record["turns"]]}
        for name in ("one", "two")
        for record in fake_records(name, dict.fromkeys(kl, lambda i: 10.0 + i % 3))
        if (name, record["method"]) != ("two", "sliding")
    ]
    lines = report_of(records)
    at = lines.index("## All suites")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[at + 2 : at + 8]]
    assert table[0] == ["method", "removed", "KL recovery, one", "KL recovery, two"]
    assert table[-2] == ["sonic", "50 %", "0.75", "0.75"]  # the best first
    assert table[-1] == ["sliding", "50 %", "0.50", "–"]
    assert len({len(line) for line in lines[at + 2 : at + 8]}) == 1  # aligned: readable in a terminal
    assert "## All suites" not in report_of(records[:160])


def test_the_share_of_a_rivals_kl_that_is_left() -> None:
    kl = {"full": 0.0, "none": 4.0, "sonic": 0.5, "kvzip": 2.0}
    records = [
        {**record, "turns": [{**turn, "kl": kl[record["method"]]} for turn in record["turns"]]}
        for record in fake_records("one", dict.fromkeys(kl, lambda i: 10.0 + i % 3))
    ]
    found = summarise(records, 0)["one"]
    (paired,) = found["paired"]
    assert (found["subject"], paired["method"]) == ("sonic", "kvzip")
    assert paired["kl_left"]["value"] == pytest.approx(0.25)


def answered(right: dict[str, Callable[[int], bool]]) -> list[dict[str, Any]]:
    """Records with one written answer each, right where a method says so."""
    return [
        {
            **record,
            "questions": [
                {
                    "message": 3,
                    "kind": "k",
                    "distance": 1,
                    "right": True,
                    "exact": right[record["method"]](int(record["case"])),
                }
            ],
        }
        for record in fake_records("s", {name: lambda i: 10.0 + i % 3 for name in right})
    ]


def test_accuracy_is_a_share_of_what_full_context_answers() -> None:
    records = answered({"full": lambda i: i % 2 == 0, "none": lambda i: False, "sonic": lambda i: i % 4 == 0})
    found = summarise(records, 0)["s"]
    row = next(row for row in found["methods"] if row["method"] == "sonic")
    assert row["accuracy"]["value"] == pytest.approx(0.25)
    assert row["accuracy_share"]["value"] == pytest.approx(0.5)
    assert row["accuracy_share"]["low"] < 0.5 < row["accuracy_share"]["high"]


def test_a_suite_that_full_context_cannot_answer_gives_kl_only() -> None:
    records = answered({"full": lambda i: i % 4 == 0, "none": lambda i: False, "sonic": lambda i: i % 4 == 0})
    found = summarise(records, 0)["s"]
    assert not found["checkable"]
    assert all("accuracy_share" not in row for row in found["methods"])
    assert any("written answers say nothing here" in line for line in report_of(records))


def test_questions_that_give_their_answers_away_give_kl_only() -> None:
    right = {"full": lambda i: i % 4 > 0, "none": lambda i: i % 2 == 0, "sonic": lambda i: i % 4 > 1}
    found = summarise(answered(right), 0)["s"]
    assert not found["checkable"]
    assert all("accuracy_share" not in row for row in found["methods"])
    assert any("0.50 without any history, so written" in line for line in report_of(answered(right)))


def test_recall_is_shown_only_where_an_answer_is_known() -> None:
    losses = {"full": lambda i: 10.0, "none": lambda i: 20.0, "sonic": lambda i: 11.0}
    assert not any("| recall" in line for line in report_of(fake_records("s", losses, 1)))
    assert any("recall" in line for line in report_of(answered(dict.fromkeys(losses, lambda i: True))))


def test_recall_is_left_out_where_full_context_finds_nothing() -> None:
    losses = {"full": lambda i: 10.0, "none": lambda i: 20.0, "sonic": lambda i: 11.0}
    records = [
        {**record, "questions": [{**record["questions"][0], "right": False}]}
        for record in answered(dict.fromkeys(losses, lambda i: True))
    ]
    found = summarise(records, 0)["s"]
    assert all(row["recall"] is None for row in found["methods"])
    assert any("recall says nothing here" in line for line in report_of(records))


def test_one_dialogue_alone_has_no_intervals_and_no_others_history(tmp_path: Path, model: Any) -> None:
    evaluation = Evaluation(model, options(tmp_path, methods=("sliding",), limit=1), CONFIG)
    evaluation.run()
    ((_, found),) = write(evaluation.results)["suites"].items()
    assert evaluation.total == len(list(evaluation.results))
    assert "other-history" not in {row["method"] for row in found["methods"]}
    report = (evaluation.results.folder / "report.md").read_text()
    assert "one dialogue alone has no intervals" in report
    assert "–1.00)" not in report


def test_the_rest_takes_as_long_as_its_suite_did_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 40.0])
    monkeypatch.setattr("sonic_kv.eval.progress.time.monotonic", lambda: next(clock))
    progress = RunProgress(tmp_path / "progress.json", {"a": 300, "b": 100}, records=4, total=20)
    first = progress.add("a", 100, 2)
    assert first.seconds_left == pytest.approx(30.0)  # 300 tokens at 10 a second, b's like a's
    second = progress.add("a", 100, 2)
    assert second.seconds_left == pytest.approx(100 * 0.2 + 100 * 0.2)
    assert json.loads((tmp_path / "progress.json").read_text())["records"] == second.records == 8


def test_files_name_their_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    files = ("mt-bench-101=$WHERE/mt.jsonl", "talks/mine.jsonl.gz")
    assert paths(EvalOptions(data=files)) == {
        "mt-bench-101": "/data/mt.jsonl",
        "mine": "talks/mine.jsonl.gz",
    }
    assert paths(EvalOptions()) == {"synthetic": None}
    assert paths(EvalOptions(suites=("synthetic", "core-res"), data=("x.jsonl",))) == {
        "synthetic": None,
        "core-res": "x.jsonl",
    }
    with pytest.raises(ConfigError, match="did you mean mt-bench-101"):
        paths(EvalOptions(data=("mt-bench=x.jsonl",)))


def test_any_dialogues_are_a_suite_even_a_single_one(tmp_path: Path, model: Any) -> None:
    path = written(tmp_path, {"messages": DIALOGUE}, {"messages": DIALOGUE}, name="mine.jsonl")
    given = options(tmp_path, suites=(), data=(str(path),), limit=1, methods=("sliding",))
    evaluation = Evaluation(model, given, CONFIG)
    evaluation.run()
    (name, found), *more = write(evaluation.results)["suites"].items()
    assert (name, found["cases"], more) == ("mine", 1, [])
    assert found["methods"][0]["recall"] is None


def test_controls_say_when_nothing_can_be_concluded() -> None:
    useless = Figures(
        fake_records("b", {"full": lambda i: 10.0 + i % 2, "none": lambda i: 10.0 + (i + 1) % 2}), 0
    ).controls()
    assert not useless[0]["holds"]
    assert "nothing can be concluded" in useless[0]["text"]
    leaking = Figures(
        fake_records(
            "b",
            {"full": lambda i: 10.0, "none": lambda i: 20.0 + i % 2, "other-history": lambda i: 12.0 + i % 2},
        ),
        0,
    ).controls()
    assert leaking[0]["holds"]
    assert not leaking[2]["holds"]


def test_a_damaged_record_is_named(tmp_path: Path, model: Any) -> None:
    evaluation = Evaluation(model, options(tmp_path, methods=("sliding",), limit=1), CONFIG)
    evaluation.run()
    lines = evaluation.results.path.read_text().splitlines()
    evaluation.results.path.write_text("\n".join([lines[0], "{]", *lines[1:]]) + "\n")
    with pytest.raises(FileError, match=r"records.jsonl, line 2: damaged"):
        list(Results(tmp_path / "out"))
    with pytest.raises(FileError, match="is not a folder of sonic-kv eval"):
        write(Results(tmp_path))


def test_every_sort_of_suite_has_a_summary_and_criteria() -> None:
    for sort in SORTS.values():
        assert sort.summary
        assert sort.criteria


# The command


def test_the_command_evaluates_a_local_model_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonic_kv.cli.main import main

    monkeypatch.chdir(tmp_path)
    tiny_base("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer(TEMPLATE).save_pretrained(tmp_path / "model")
    (tmp_path / "short.toml").write_text("[eval]\nexchanges = 3\nlimit = 2\n")
    common = ["eval", "--model", "model", "--config", "short.toml", "--ratios", "0.6", "--methods"]
    assert main([*common, "sliding", "h2o", "--out", "a"]) == 0
    assert "sliding" in capsys.readouterr().out
    assert main([*common, "random", "--out", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suites"]["synthetic"]["cases"] >= 1
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {
        "config.json",
        "records.jsonl",
        "summary.json",
        "report.md",
        "progress.json",
    }
    assert main([*common, "sliding", "h2o", "--out", "c", "--workers", "2", "--batch-size", "1"]) == 0
    capsys.readouterr()

    def losses(folder: str) -> dict[Any, list[float]]:
        return {runs.key(r): [turn["nll"] for turn in r["turns"]] for r in Results(tmp_path / folder)}

    parallel, alone = losses("c"), losses("a")
    assert parallel.keys() == alone.keys()
    for key, values in parallel.items():
        assert values == pytest.approx(alone[key], abs=1e-3)
    assert main(["report", "a"]) == 0
    assert "sliding" in capsys.readouterr().out
    assert main(["report", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "a: KL recovery" in out
    assert "b: KL recovery" in out
    assert main(["report", "nowhere"]) == 1
    assert "nowhere is not a folder of sonic-kv eval" in capsys.readouterr().err


def test_predicted_damage_stands_beside_what_was_measured(tmp_path: Path) -> None:
    model = tiny_model(adapter={"lora_rank": 0})
    asked = options(tmp_path, methods=("sonic", "sliding"), ratios=(0.5, 0.9), max_damages=(0.02,), limit=4)
    with pytest.raises(ConfigError, match="max_damage needs"):
        Evaluation(model, asked, CONFIG)
    assert model.adapter is not None
    model.adapter.scale = DamageScale(2e-3, 0.8)
    evaluation = Evaluation(model, asked, CONFIG)
    evaluation.run()
    records = list(evaluation.results)
    assert len(records) == evaluation.total == 4 * (3 + 3 + 2)
    assert {record["method"] for record in records if "damage" in record} == {"sonic", "sonic at 0.02 nats"}
    for record in records:
        if record["method"] == "sonic at 0.02 nats":
            assert len(record["damage"]) == len(record["memory"])
            assert max(record["damage"]) <= 0.02 * (1 + 1e-4)
    summary = write(evaluation.results)
    rows = {(row["method"], row["ratio"]): row for row in summary["damage"]["rows"]}
    assert list(rows) == [("sonic", 0.5), ("sonic", 0.9), ("sonic at 0.02 nats", None), ("all budgets", None)]
    assert rows["sonic", 0.5]["predicted"] < rows["sonic", 0.9]["predicted"]
    assert rows["all budgets", None]["count"] == 12
    folder = evaluation.results.folder
    text = (folder / "report.md").read_text()
    assert "## Predicted damage" in text
    assert (folder / "damage.svg").exists() is ("damage.svg" in text)


def test_rank_correlation_is_of_ranks() -> None:
    values = [0.1, 0.5, 0.2, 0.9, 0.7]
    same = rank_correlation(values, [v**3 for v in values], 0)
    assert same is not None
    assert same["value"] == pytest.approx(1.0)
    other = rank_correlation(values, [-v for v in values], 0)
    assert other is not None
    assert other["value"] == pytest.approx(-1.0)
    tied = rank_correlation([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], 0)
    assert tied is not None
    assert tied["value"] == pytest.approx(0.9487, abs=1e-4)
    assert rank_correlation(values[:3], values[:3], 0) is None


@pytest.mark.parametrize("count", [3, len(COLOURS) + 2])
def test_a_plot_names_the_grey_lines_if_there_are_any(count: int) -> None:
    pytest.importorskip("matplotlib")
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"method": f"m{n}", "ratio": ratio, "kl_recovery": value}
        for n in range(count)
        for ratio in (0.5, 0.8)
    ]
    drawn = plot({"methods": rows, "subject": "m0"})
    assert drawn is not None
    assert ("other methods" in drawn) is (count > len(COLOURS))
