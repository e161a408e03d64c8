"""The benchmark times what it says; no test depends on how fast this machine is."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from serving import serving
from tiny import tiny_model, tiny_tokenizer

from sonic_kv.bench import batch, dialogue, timing
from sonic_kv.bench.against import Remote
from sonic_kv.bench.closing import measure, report
from sonic_kv.bench.options import (
    BENCH_METHODS,
    BenchBatchOptions,
    BenchClosingOptions,
    BenchDialogueOptions,
    Shape,
)
from sonic_kv.bench.shapes import SHAPES, random_model
from sonic_kv.bench.timing import decode_bound, measure_machine, paired, ratio_of_sums
from sonic_kv.cli.main import main
from sonic_kv.errors import ConfigError, ServeError


def test_paired_ratio_is_that_of_the_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in turn, on a clock that both sides move; that the machine slows down meanwhile hardly matters."""
    now, slower = [0.0], iter(range(1, 99))

    def side(seconds: float) -> None:
        now[0] += seconds * (1 + next(slower) // 2)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    result = paired("slow / quick", lambda: side(0.02), lambda: side(0.01), repetitions=5)
    assert 1.5 < result.ratio < 2.0
    assert result.low <= result.ratio <= result.high
    assert result.ms > result.baseline_ms > 9


def test_bench_times_closing_and_decoding_on_a_compressed_cache() -> None:
    results = measure(tiny_model(), BenchClosingOptions(history=96, segment=32, steps=2, repetitions=3))
    assert [result.name.split()[0] for result in results] == ["closing", "closing", "2"]
    assert all(result.ms > 0 and result.baseline_ms > 0 for result in results)
    assert "on 22 entries" in results[2].name  # prefix 4, a fifth of 92
    assert len(report(results).text.splitlines()) == 5
    assert report(results).data[0]["ratio"] == results[0].ratio


def test_bench_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"ratio=1.0 is outside \[0, 1\)"):
        BenchClosingOptions(ratio=1.0)
    with pytest.raises(ConfigError, match="repetitions"):
        BenchClosingOptions(repetitions=1)
    with pytest.raises(ConfigError, match="history"):
        BenchClosingOptions(history=4)


# --- whole dialogues ----------------------------------------------------------------------------

SHORT = BenchDialogueOptions(
    lengths=(24, 96), user_tokens=(8,), reply_tokens=(16,), ratios=(0.5, 0.8), repetitions=2
)
FULL = ["full", "re-prefilled", "full, int8", "full, int4"]
NAMES = [*FULL, *(f"{kind} {ratio}" for kind in ("streaming", "sonic") for ratio in (0.5, 0.8))]


def test_a_ratio_of_sums_has_an_interval_that_holds_it() -> None:
    ours, theirs = [[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]], [[2.0, 4.0, 6.0], [8.0, 8.0, 8.0]]
    found = ratio_of_sums(ours, theirs)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)  # repetitions are drawn as pairs
    uneven = ratio_of_sums([[1.0, 3.0]], [[2.0, 2.0]])
    assert uneven.low < uneven.value == 1.0 < uneven.high


@pytest.mark.parametrize("size", [1, 3])
def test_every_method_lives_through_the_same_dialogue(size: int) -> None:
    model = tiny_model()
    (result,) = dialogue.measure(model, "tiny", replace(SHORT, batch=(size,)))
    assert list(result.turns) == NAMES
    found = {(row.method, row.length): row for row in dialogue.rows(result)}
    for name, turns in result.turns.items():
        assert [len(times) for times in turns.total([1.0] * 4)] == [2] * 4
        assert all(t > 0 for times in turns.first_token + turns.decode for t in times)
        assert found[name, 96].seconds > found[name, 24].seconds
        ratio = 0.0 if name in FULL else float(name.split()[1])
        history = 96 - 1  # the last token of a reply is fed with the next message
        kept = dialogue.PREFIX + round((1 - ratio) * history) if ratio else dialogue.PREFIX + history
        if ratio:  # 8 bytes of bookkeeping an entry, head and layer
            per_entry = model.bytes_per_token + 8 * model.num_layers * model.num_heads
            exact = size * (kept * per_entry - dialogue.PREFIX * 8 * model.num_layers * model.num_heads)
            assert turns.live_bytes[-1] == exact
    full = found["full", 96]
    assert full.to_full is not None
    assert full.to_full.value == full.step_to_full.value == 1.0  # type: ignore[union-attr]
    assert full.closing_share < 0.01 < found["sonic 0.8", 96].closing_share
    assert found["sonic 0.8", 96].live_bytes < found["sonic 0.5", 96].live_bytes < full.live_bytes


def test_packed_memory_is_live_in_few_bits_and_works_in_many() -> None:
    model = tiny_model()
    options = replace(SHORT, methods=("full", "sonic"), bits=(0, 4), ratios=(0.5,))
    turns = dialogue.measure(model, "tiny", options)[0].turns
    assert list(turns) == ["full", "sonic 0.5", "sonic, int4 0.5"]
    full, packed = turns["sonic 0.5"], turns["sonic, int4 0.5"]
    assert packed.entries == full.entries
    assert packed.live_bytes[-1] < 0.6 * full.live_bytes[-1]
    assert packed.peak_bytes[-1] >= full.peak_bytes[-1] * 0.9


def test_turns_that_are_read_in_untimed_leave_the_dialogue_as_long() -> None:
    model = tiny_model()
    options = replace(SHORT, lengths=(48, 240), batch=(2,), ratios=(0.5,), bits=(0, 4))
    (whole,) = dialogue.measure(model, "tiny", replace(options, timed=0, repetitions=1))
    (some,) = dialogue.measure(model, "tiny", replace(options, timed=2, repetitions=1))
    assert (whole.timed, some.timed) == ([*range(10)], [0, 1, 5, 9])
    for name, turns in some.turns.items():
        assert turns.entries == [whole.turns[name].entries[number] for number in some.timed]
        if name not in FULL:
            assert turns.live_bytes == [whole.turns[name].live_bytes[number] for number in some.timed]
    assert "; 4 of 10 turns timed" in dialogue.report([some]).text


def test_what_lies_between_timed_turns_counts_as_on_a_line() -> None:
    timed, count = [0, 1, 5, 9], 10
    weights = dialogue.shares(timed, count)
    line = [3.0 + 2.0 * number for number in range(count)]
    assert sum(w * line[n] for w, n in zip(weights, timed, strict=True)) == pytest.approx(sum(line))
    assert dialogue.shares([0, 1, 2], 3) == [1.0, 1.0, 1.0]


def test_several_batch_sizes_are_measured_in_one_run() -> None:
    options = replace(SHORT, lengths=(24,), batch=(1, 2), methods=("full",), repetitions=1)
    results = dialogue.measure(tiny_model(), "tiny", options)
    assert [result.turns["full"].live_bytes[-1] for result in results[1:]] == [
        2 * results[0].turns["full"].live_bytes[-1]
    ]


def test_another_engine_plays_the_same_dialogues() -> None:
    with serving(tiny_model(max_position_embeddings=2048)) as server:
        options = replace(SHORT, batch=(2,), methods=("full",), timed=1, against=f"{server.url}/v1")
        (result,) = dialogue.measure(tiny_model(), "tiny", options)
        told = server.http.get("/v1/sessions").json()["data"]
    theirs = result.turns[f"{server.url}/v1"]
    assert [len(times) for times in theirs.total([1.0, 1.0])] == [2, 2]
    assert all(t > 0 for times in theirs.first_token + theirs.decode for t in times)
    row = dialogue.rows(result)[-1]
    assert row.live_bytes is None
    assert row.to_full is not None
    assert len(told) >= 2  # a dialogue a row
    with pytest.raises(ServeError, match="does not answer /v1/models"):
        dialogue.measure(tiny_model(), "tiny", replace(options, against=f"{server.url}/nothing"))


@contextmanager
def engine(events: bytes) -> Iterator[str]:
    """The address of a server that answers every dialogue with these events."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(b'{"data": [{"id": "model"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(events)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (
            b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"error": {"message": "gone"}}\n\n',
            "broke off.*gone",
        ),
        (b"data: {half\n\n", "broke off"),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n', "cannot be timed"),
    ],
)
def test_of_an_engine_that_fails_or_says_next_to_nothing_no_times_are_told(events: bytes, said: str) -> None:
    with engine(events) as url, pytest.raises(ServeError, match=said):
        Remote(url, tiny_model(), 1).turn([[1, 2]], 4)


def test_the_bound_counts_every_weight_and_entry_once() -> None:
    model = tiny_model()
    machine = replace(measure_machine(model, 1), bytes_per_second=1e9, operations_per_second=1e15)
    weights = (
        sum(w.numel() for w in model.base.parameters()) - model.base.get_input_embeddings().weight.numel()
    )
    bound = decode_bound(model, machine, entries=100, batch=3)
    assert bound == pytest.approx((4 * weights + 3 * 100 * model.bytes_per_token) / 1e9)


def test_figures_are_written_to_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = tiny_model()
    options = replace(
        SHORT, user_tokens=(8, 2), reply_tokens=(16, 4), methods=("full", "sonic"), repetitions=1
    )
    results = dialogue.measure(model, "tiny", options)
    written = dialogue.report(results)
    written.write(tmp_path / "out")
    read = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [dialogue_of["turn"] for dialogue_of in read] == [[8, 16], [2, 4]]
    assert read[0]["rows"][0]["method"] == "full"
    assert read[0]["turns"]["sonic 0.8"]["live_bytes"] == results[0].turns["sonic 0.8"].live_bytes
    assert [len(result.turns["full"].decode) for result in results] == [4, 8]
    page = (tmp_path / "out" / "report.md").read_text()
    assert page == written.text
    assert len(re.findall(r"^\| sonic 0\.5 ", page, re.M)) == 4
    assert "## 96 tokens, batch 1, turns of 2 user and 4 reply tokens" in page
    assert "re-prefilled" not in page.split("## 24")[1].replace("/ re-prefilled", "")
    assert b"<svg" in (tmp_path / "out" / "plot.svg").read_bytes()


def test_a_shape_is_a_model_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(get_args(Shape)) == list(SHAPES)
    small: dict[str, Any] = {"intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 300}
    for shape, config in list(SHAPES.items()):
        hidden = 2 * config["num_attention_heads"]
        monkeypatch.setitem(SHAPES, shape, {**config, **small, "hidden_size": hidden})
        model = random_model(shape, "cpu", torch.float32, tiny_tokenizer(), seed=0)
        assert model.num_heads == config["num_key_value_heads"]
        options = replace(SHORT, lengths=(24,), methods=("sonic",), ratios=(0.5,), repetitions=1)
        assert dialogue.measure(model, shape, options)[0].turns["sonic 0.5"].entries == [dialogue.PREFIX + 23]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("full", "magic")}, "each full, re-prefilled, few-bits, streaming or sonic"),
        ({"methods": ()}, "at least one"),
        ({"lengths": ()}, "at least one"),
        ({"lengths": (100,)}, r"a turn \(256 tokens\)"),
        ({"reply_tokens": (1,)}, "at least 2"),
        ({"user_tokens": (64, 256)}, "as many of each"),
        ({"batch": (0,)}, "at least 1"),
        ({"timed": -1}, "must not be negative"),
    ],
)
def test_dialogue_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchDialogueOptions(**options)
    assert set(BENCH_METHODS) == set(BenchDialogueOptions().methods)


def test_batches_have_no_compiled_step_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "dialogue", "--compile", "--batch", "1", "2"]) != 0
    assert "one dialogue at a time unless on a GPU" in capsys.readouterr().err


# --- batches ------------------------------------------------------------------------------------


def test_batches_grow_until_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = tiny_model(), BenchBatchOptions(length=40, ratios=(0.0, 0.8), max_batch=8, steps=2)
    result = batch.measure(model, "tiny", options)
    assert [(s.ratio, s.batch, s.entries) for s in result.steps] == [
        (ratio, rows, entries) for ratio, entries in ((0.0, 40), (0.8, 8)) for rows in (1, 2, 4, 8)
    ]
    assert all(s.ms > 0 and s.tokens_per_second == pytest.approx(1e3 * s.batch / s.ms) for s in result.steps)
    assert result.too_large == {0.0: None, 0.8: None}
    step = batch.batch_step

    def full(base: Any, caches: Any, *arguments: Any) -> Any:
        if len(caches) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return step(base, caches, *arguments)

    monkeypatch.setattr(batch, "batch_step", full)
    result = batch.measure(model, "tiny", options)
    assert result.too_large == {0.0: 4, 0.8: 4}
    report = batch.report(result)
    assert "0.8 removed: 2 rows fit, 4 do not" in report.text
    assert report.data["steps"][0]["batch"] == 1
