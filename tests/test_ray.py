"""Laws of `sonic-kv serve --engine ray`: a dialogue does not notice which replica it is on, or that one died."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import assistant, check_front, user

from sonic_kv.bench.soak import launched
from sonic_kv.cli.main import main
from sonic_kv.compress.options import Budget
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.model.model import SonicModel
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

DIALOGUES, TURNS, CLIENTS = 50, 10, 8
BRIEF = 8  # tokens of a reply
TRIES = 5

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra [ray]: make test-ray")


def test_without_ray_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sonic_kv.integrations.ray", raising=False)
    assert main(["serve", "--engine", "ray", "--model", "tiny"]) == 2
    assert capsys.readouterr().err == "sonic-kv: error: engine ray needs ray: pip install 'sonic-kv[ray]'\n"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--replicas 2", "replicas is an option of engine ray"),
        ("--engine ray --store none", "engine ray needs a store"),
        ("--engine ray --replicas 0", "replicas=0 must be at least 1"),
        ("--engine ray --replicas 3 --max-replicas 2", "max_replicas=2 is below replicas=3"),
        ("--engine ray --replica-cpus 0", "replica_cpus=0.0 must be above 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    flags: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_replicas_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sonic_kv.cli",
        "serve",
        "--model",
        "tiny",
        "--engine",
        "ray",
    ]
    result = subprocess.run(
        [*command, "--replicas", "1000", "--store", str(tmp_path), "--port", "0"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "1000 replicas of 1 CPUs do not fit on this machine" in result.stderr.splitlines()[-1]


@dataclass
class Dialogue:
    """A dialogue and what was said in it. Some clients name theirs, some do not; some streams, some wait."""

    texts: list[str]
    name: str | None
    messages: list[dict[str, str]] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)  # tokens that the replica had at each turn
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def go_on(self, http: httpx.Client) -> None:
        """Say the next text, again if that fails: what was not acknowledged may be said again."""
        turn = len(self.cached)
        asked = [*self.messages, user(self.texts[turn])]
        start = time.monotonic()
        for attempt in range(TRIES):
            try:
                reply, usage = ask(http, asked, self.name, stream=turn % 2 == 1)
                break
            except (httpx.HTTPError, EOFError) as error:
                self.failures.append(f"turn {turn}: {error!r}")
                time.sleep(0.1 * 2**attempt)
        else:
            pytest.fail("; ".join(self.failures))
        self.seconds.append(time.monotonic() - start)
        self.cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        self.messages = [*asked, assistant(reply)]

    def undisturbed(self, model: SonicModel) -> list[dict[str, str]]:
        """The same dialogue with a session of this process."""
        chat = ChatSession(model, Budget(compression_ratio=0.8))
        messages: list[dict[str, str]] = []
        for text in self.texts[: len(self.cached)]:
            reply = chat.fork().send(text, SamplingConfig(max_new_tokens=BRIEF)).text
            new = [user(text), assistant(reply)]
            chat.extend(new)
            messages += new
        return messages


def ask(
    http: httpx.Client, messages: list[dict[str, str]], name: str | None, stream: bool
) -> tuple[str, dict[str, Any]]:
    """The reply and its usage.

    Raises:
        EOFError: a stream ended before its end was said.
    """
    body: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": BRIEF}
    headers = {} if name is None else {"x-session-id": name}
    if not stream:
        response = http.post("/v1/chat/completions", json=body, headers=headers)
        answer = response.raise_for_status().json()
        return answer["choices"][0]["message"]["content"], answer["usage"]
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    text, usage = "", {}
    with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        for line in response.raise_for_status().iter_lines():
            if line == "data: [DONE]":
                return text, usage
            if line:
                chunk = json.loads(line.removeprefix("data: "))
                text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
                usage = chunk.get("usage") or usage
    raise EOFError("the stream broke off")


def dialogues(number: int, seed: int) -> list[Dialogue]:
    """Dialogues whose later turns ask for earlier ones; every fifth has no name."""
    found = []
    options = SynthConfig(split="validation", seed=seed, dialogues=1 << 20, max_exchanges=32)
    for made in generate_dialogues(options):
        texts = [message["content"] for message in made["messages"] if message["role"] == "user"]
        if len(texts) >= TURNS:
            found.append(Dialogue(texts[:TURNS], None if len(found) % 5 == 4 else f"d{seed}-{len(found)}"))
        if len(found) == number:
            break
    return found


@dataclass
class Cluster:
    """`sonic-kv serve --engine ray --replicas 2`, and a client of it."""

    process: psutil.Process
    http: httpx.Client

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        children = self.process.children(recursive=True)
        return [child for child in children if child.cmdline()[:1] and "ServeReplica:" in child.cmdline()[0]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    arguments = ["--model", "tiny", "--engine", "ray", "--replicas", "2", "--replica-cpus", "0.5"]
    arguments += ["--store", str(folder / "store"), "--store-after", "3600"]  # records only
    start = time.monotonic()
    with launched(arguments, folder / "log") as (process, url):
        print(f"\nstarted in {time.monotonic() - start:.0f} s")
        with httpx.Client(base_url=url, timeout=120) as http:
            found = Cluster(psutil.Process(process.pid), http)
            yield found
        family = found.process.children(recursive=True)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive  # whoever stops the command has stopped all of Ray


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return SonicModel.from_pretrained("tiny")


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_replicas_are_asked_as_one_server_is(cluster: Cluster) -> None:
    for _ in range(2):  # whichever is asked
        check_front(cluster.http)


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_a_named_session_stays_on_its_replica(cluster: Cluster, model: SonicModel) -> None:
    named = [dialogue for dialogue in dialogues(10, seed=1) if dialogue.name is not None]
    for _ in range(3):
        for dialogue in named:
            dialogue.go_on(cluster.http)
    for dialogue in named:
        assert dialogue.messages == dialogue.undisturbed(model)
        assert dialogue.cached[0] == 0
        assert all(dialogue.cached[1:])  # only one replica can have it: no cache is on the store yet
        assert not dialogue.failures
        seen = cluster.http.get(f"/v1/sessions/{dialogue.name}").json()
        assert seen["messages"] == dialogue.messages


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_dialogues_end_as_if_no_replica_had_died(cluster: Cluster, model: SonicModel) -> None:
    told = dialogues(DIALOGUES, seed=2)
    start = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for turn in range(TURNS):
            for number, _ in enumerate(pool.map(lambda dialogue: dialogue.go_on(cluster.http), told)):
                if turn == TURNS // 2 and number == DIALOGUES // 2:
                    victim = cluster.replicas()[0]
                    victim.kill()  # in the middle of everybody's sixth turn
    seconds = time.monotonic() - start
    print(f"\nsaid in {seconds:.0f} s")
    expected = [dialogue.undisturbed(model) for dialogue in told]
    assert [dialogue.messages for dialogue in told] == expected

    named = [dialogue for dialogue in told if dialogue.name is not None]
    before, after = slice(1, TURNS // 2), slice(TURNS // 2, TURNS)
    assert all(all(dialogue.cached[before]) for dialogue in named)
    again = [turn for dialogue in named for turn in dialogue.cached[after] if turn == 0]
    assert again  # the dead replica's dialogues were made again from what was said
    for dialogue in named:
        seen = cluster.http.get(f"/v1/sessions/{dialogue.name}").json()
        assert seen["messages"] == dialogue.messages

    deadline = time.monotonic() + 120
    while len(cluster.replicas()) < 2:  # another takes the dead one's place
        assert time.monotonic() < deadline
        time.sleep(0.5)

    failures = [failure for dialogue in told for failure in dialogue.failures]
    turns = sorted(second for dialogue in told for second in dialogue.seconds)
    print(
        f"\n{DIALOGUES} dialogues of {TURNS} turns in {seconds:.0f} s; a turn takes {turns[len(turns) // 2]:.2f} s, "
        f"the slowest {turns[-1]:.2f} s; {len(again)} times made again; {len(failures)} tries failed:",
        *failures[:8],
    )
