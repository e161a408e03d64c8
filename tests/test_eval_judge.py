"""Written replies: matching, the judge's client against a real HTTP server, what is kept when it fails."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import DIALOGUE, tiny_model

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig
from sonic_kv.errors import ConfigError
from sonic_kv.eval import judge as judging
from sonic_kv.eval.judge import Endpoint, JudgeError, Verdicts, parse, prompt
from sonic_kv.eval.matching import exact_match, last_number, similarity
from sonic_kv.eval.options import EvalOptions
from sonic_kv.eval.report import as_text, write
from sonic_kv.eval.run import Evaluation
from sonic_kv.eval.suites import Case

CONFIG = SessionConfig(min_segment_tokens=32)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is $1,234.50.", 1234.5),
        ("18", 18.0),
        ("It is 7 eggs at $2, so \\ANSWER{14}.", 14.0),
        ("-3 degrees", -3.0),
        ("about 50%", 50.0),
        ("none", None),
    ],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_exact_match() -> None:
    assert exact_match("She lives in Oslo!", "oslo")
    assert not exact_match("She lives in Oslofjord", "Oslo")
    assert exact_match("Benefits of reading", "The benefits of reading")
    assert not exact_match("Reading", "The benefits of reading")
    assert exact_match("so she makes $1,018.00 a day", "1018", number=True)
    assert not exact_match("18 eggs, which makes 9", "18", number=True)
    assert not exact_match("I do not know", "18", number=True)


@given(st.text(), st.text())
def test_similarity_is_symmetric_and_one_for_the_same(one: str, other: str) -> None:
    assert similarity(one, other) == similarity(other, one)
    assert 0.0 <= similarity(one, other) <= 1.0
    assert similarity(one, one) == 1.0


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ('{"quality": 7}', {"quality": 7}),
        ('Let me think.\n```json\n{"quality": 10}\n```', {"quality": 10}),
        ('{"quality": 3} No: {"quality": 4}', {"quality": 4}),
        ('{"quality": 7.0}', {"quality": 7}),
        ('{"quality": 11}', None),
        ('{"quality": "good"}', None),
        ('{"quality": true}', None),
        ("seven", None),
        ("", None),
    ],
)
def test_verdicts_are_read_without_guessing(answer: str, scores: dict[str, int] | None) -> None:
    assert parse(answer, ["quality"]) == scores


def test_the_judge_sees_the_dialogue_the_gold_reply_and_the_reply() -> None:
    system, user = prompt(Case("x", "all", DIALOGUE), 7, "in Bergen", {"quality": "is it right?"})
    assert "quality: is it right?" in system["content"]
    assert "where does Ada live?" in user["content"]
    assert user["content"].index("in Oslo") < user["content"].index("in Bergen")


Answer = Callable[[int], tuple[int, str]]


class Judge:
    """A judge of our own: an HTTP server in a thread; `answer` maps the number of a request to its answer."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[Any] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, json.dumps({"data": [{"id": "tester"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.asked)
                    outer.asked.append((body, self.headers.get("Authorization")))
                status, text = answer(number)
                self._send(status, json.dumps({"choices": [{"message": {"content": text}}]}))

            def _send(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Judge]]:
    monkeypatch.setattr(judging, "PAUSE", 0.01)
    judges: list[Judge] = []

    def start(answer: Answer) -> Judge:
        judges.append(Judge(answer))
        return judges[-1]

    yield start
    for judge in judges:
        judge.server.shutdown()
        judge.server.server_close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    lines = [
        {
            "id": f"d{n}",
            "messages": DIALOGUE,
            "questions": [{"message": 7, "answer": "Oslo", "kind": "place", "distance": 3}],
        }
        for n in range(2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluation(folder: Path, data: Path, url: str | None, **changes: Any) -> Evaluation:
    given = {
        "out": str(folder / "out"),
        "suites": ("core-res",),
        "data": (str(data),),
        "methods": ("sonic", "sliding"),
        "ratios": (0.6,),
        "generate": "replies",
        "max_new_tokens": 6,
        "judge_url": url,
    }
    return Evaluation(tiny_model(), EvalOptions(**{**given, **changes}), CONFIG)


def test_written_replies_equal_those_of_a_session(tmp_path: Path, data: Path) -> None:
    run = evaluation(tmp_path, data, None, methods=("sonic", "recent", "full"))
    run.run()
    records = {(r["method"], r["case"]): r for r in run.results}
    for method, adapter in (("sonic", True), ("recent", False), ("full", True)):
        model = tiny_model(adapter=adapter)
        budget = Budget() if method == "full" else Budget(compression_ratio=0.6)
        sampling = SamplingConfig(max_new_tokens=6)
        config = replace(CONFIG, policy="recent") if method == "recent" else CONFIG
        for message in (1, 3, 5, 7):
            session = ChatSession(model, budget, config=config, sampling=sampling)
            if message > 1:
                session.extend(DIALOGUE[: message - 1])
            written = session.send(DIALOGUE[message - 1]["content"]).text
            assert records[method, "d0"]["replies"][str(message)] == written


def test_verdicts_are_cached_and_shared(
    tmp_path: Path, data: Path, served: Callable[[Answer], Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    judge = served(lambda n: (200, '{"quality": 6}'))
    run = evaluation(tmp_path, data, judge.url)
    run.run()
    run.judge()
    different = {(r["case"], message, text) for r in run.results for message, text in r["replies"].items()}
    assert len(judge.asked) == len(different)
    assert judge.asked[0][1] == "Bearer sesame"
    assert judge.asked[0][0]["model"] == "tester"
    summary = write(run.results)
    rows = {row["method"]: row for row in summary["suites"]["core-res"]["methods"]}
    assert rows["sonic"]["judge"]["quality"]["value"] == 6.0
    assert rows["sonic"]["unreadable"] == 0
    assert rows["full"]["similarity"]["value"] == 1.0
    assert "judge: quality" in as_text(summary)
    before = len(judge.asked)
    again = evaluation(tmp_path, data, judge.url)
    again.run()
    again.judge()
    assert len(judge.asked) == before


def test_a_busy_judge_is_asked_again(tmp_path: Path, data: Path, served: Callable[[Answer], Judge]) -> None:
    judge = served(lambda n: (503, "") if n % 2 == 0 else (200, '{"quality": 6}'))
    run = evaluation(tmp_path, data, judge.url, methods=("sliding",))
    run.run()
    run.judge()
    assert {v["quality"] for v in Verdicts(run.results.folder).found.values() if v is not None} == {6}
    assert None not in Verdicts(run.results.folder).found.values()


def test_nonsense_is_counted_and_never_a_score(
    tmp_path: Path, data: Path, served: Callable[[Answer], Judge]
) -> None:
    judge = served(lambda n: (200, "I like turtles."))
    run = evaluation(tmp_path, data, judge.url)
    run.run()
    run.judge()
    row = next(r for r in write(run.results)["suites"]["core-res"]["methods"] if r["method"] == "sonic")
    assert row["unreadable"] == 8  # four replies of two dialogues
    assert "judge" not in row


def test_a_judges_answer_may_hold_any_sign(tmp_path: Path) -> None:
    Verdicts(tmp_path).add("a", "judge", {"quality": 6}, "one\u2028two\x85three\n")
    assert Verdicts(tmp_path).found == {"a": {"quality": 6}}


def test_a_judge_that_is_down_loses_nothing(
    tmp_path: Path, data: Path, served: Callable[[Answer], Judge]
) -> None:
    broken = True
    judge = served(lambda n: (200, '{"quality": 6}') if n < 3 or not broken else (500, ""))
    run = evaluation(tmp_path, data, judge.url)
    run.run()
    records = run.results.path.read_text()
    with pytest.raises(JudgeError, match="500 Internal Server Error; what is judged is kept"):
        run.judge()
    assert run.results.path.read_text() == records
    kept = Verdicts(run.results.folder).found
    assert 0 < len(kept) <= 3
    write(run.results)
    broken = False
    run.judge()
    assert len(Verdicts(run.results.folder).found) > len(kept)
    row = next(r for r in write(run.results)["suites"]["core-res"]["methods"] if r["method"] == "sonic")
    assert row["judge"]["quality"]["value"] == 6.0
    assert row["unreadable"] == 0


def test_a_judge_that_is_not_there_is_named(
    tmp_path: Path, data: Path, served: Callable[[Answer], Judge]
) -> None:
    with pytest.raises(JudgeError, match=r"judge http://127.0.0.1:9/v1/models gives no answer"):
        Endpoint.of(EvalOptions(judge_url="http://127.0.0.1:9/v1", generate="replies", judge_timeout=1.0))
    refusing = served(lambda n: (401, ""))
    with pytest.raises(JudgeError, match="401"):
        Endpoint(refusing.url, "m", None, 1.0).ask([{"role": "user", "content": "x"}])
    assert len(refusing.asked) == 1  # a refusal is not tried again
    with pytest.raises(ConfigError, match="add --generate replies"):
        EvalOptions(judge_url="http://x")


def test_another_judge_is_asked_anew(tmp_path: Path, data: Path, served: Callable[[Answer], Judge]) -> None:
    judge = served(lambda n: (200, '{"quality": 6}'))
    run = evaluation(tmp_path, data, judge.url, methods=("sliding",))
    run.run()
    run.judge()
    before = len(judge.asked)
    evaluation(tmp_path, data, judge.url, methods=("sliding",), judge_model="another").judge()
    assert len(judge.asked) == 2 * before
    assert judge.asked[-1][0]["model"] == "another"
