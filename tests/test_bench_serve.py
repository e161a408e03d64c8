"""The server's benchmark and its soak do what they say; no test depends on how fast this machine is."""

import json
import re
from pathlib import Path

import pytest
from tiny import tiny_model

from sonic_kv.bench import serve, soak, soak_record
from sonic_kv.bench.options import BenchServeOptions, BenchSoakOptions
from sonic_kv.errors import ConfigError, ServeError
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import ModelOptions
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

SHORT = BenchServeOptions(
    length=96, user_tokens=24, reply_tokens=8, dialogues=3, ratio=0.5, kv_memory="200kB", repetitions=2
)


def test_every_server_lives_through_the_same_dialogues(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = serve.measure(tiny_model(max_position_embeddings=8192), "tiny", SHORT)
    assert list(result.turns) == [serve.SONIC, serve.FULL, serve.REPREFILLED]
    for turns in result.turns.values():
        assert [len(times) for times in turns.seconds] == [2, 2, 2]
        assert all(seconds > 0 for times in turns.seconds for seconds in times)
        assert turns.logical_tokens == sorted(turns.logical_tokens)
    full, sonic = result.capacities
    assert full.ratio == 0.0
    assert full.bytes_each > sonic.bytes_each
    assert result.live == sonic.live / full.live > 1
    assert full.live * full.bytes_each <= 200_000
    assert result.steps.value > 0
    assert 0 < result.pause.median <= result.pause.longest
    written = serve.report(result)
    written.write(tmp_path / "out")
    read = json.loads((tmp_path / "out" / "result.json").read_text())
    assert read["ratios"][serve.FULL]["value"] == result.faster(serve.FULL).value
    page = (tmp_path / "out" / "report.md").read_text()
    assert page == written.text
    assert f"({sonic.live} / {full.live};" in page
    assert b"<svg" in (tmp_path / "out" / "plot.svg").read_bytes()


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"a turn \(256 tokens\)"):
        BenchServeOptions(length=100)
    with pytest.raises(ConfigError, match="kv_memory"):
        BenchServeOptions(kv_memory="0")
    with pytest.raises(ConfigError, match="more than clients"):
        BenchSoakOptions(dialogues=4, clients=4)
    with pytest.raises(ConfigError, match="minutes"):
        BenchSoakOptions(minutes=0)


@pytest.mark.slow
def test_a_short_soak_finds_nothing_wrong(tmp_path: Path) -> None:
    options = BenchSoakOptions(minutes=0.4, dialogues=24, clients=6, kv_memory="4MiB", max_tokens=300)
    result = soak.measure(SonicModel.from_pretrained("tiny"), "tiny", ModelOptions(model="tiny"), options)
    assert result.replies == result.checked > 10
    assert result.wrong == []
    assert result.named > 0
    assert result.lost == 0
    assert set(result.answers) <= {"200", "429", "503"}
    assert 0 < result.kv_peak <= 4 << 20
    assert result.sessions.get("evicted", 0) > 0
    assert result.log == ""
    soak_record.report(result).write(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["answers"]["200"] >= result.replies
    assert re.search(rf"^\| replies +\| +{result.replies} \|", (tmp_path / "report.md").read_text(), re.M)


def test_a_soak_sees_a_reply_that_is_not_the_models() -> None:
    model = SonicModel.from_pretrained("tiny")
    result = soak_record.Result("default model", BenchSoakOptions())
    dialogue = soak_record.Dialogue("be brief", 0.8, None, iter(()))
    for text in ("My sister Ada lives in Oslo.", "Where does Ada live?"):
        session = ChatSession(model, system="be brief")
        for said in dialogue.at.path():
            session.extend(
                [{"role": "user", "content": said.user}, {"role": "assistant", "content": said.reply}]
            )
        reply = session.send(text, SamplingConfig(max_new_tokens=24))
        said = soak_record.Said(dialogue.at, text, reply.text, reply.finish_reason)
        dialogue.at.after.append(said)
        dialogue.at = said
    soak_record.compare(model, result, [dialogue])
    assert (result.checked, result.wrong, result.failures()[0]) == (2, [], "no reply at all")
    dialogue.at.reply += " really"
    soak_record.compare(model, result, [dialogue])
    assert [wrong["reply"] for wrong in result.wrong] == [dialogue.at.reply]
    assert result.failures()[0] == "1 wrong replies"


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ServeError, match=r"did not start.*no such folder"),
        soak.launched(["--model", "./nowhere"], tmp_path / "log"),
    ):
        pass
