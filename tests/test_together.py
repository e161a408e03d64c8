"""Dialogues decoded together on a GPU: what its kernels are told, and that a step is the model's own.

The kernels run on a GPU, or where Triton is without one, in its interpreter: set TRITON_INTERPRET=1.
"""

import ctypes
import importlib.util
import os

import pytest
import torch
from test_engine import turn
from tiny import DIALOGUE, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig
from sonic_kv.cache.attention import attend_heads
from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.growing import ALIGNED, claim
from sonic_kv.cache.together import Together, fits
from sonic_kv.compress.options import Bits
from sonic_kv.model.batch import batch_step, columns
from sonic_kv.model.forward import forward
from sonic_kv.model.graph import rows_of
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reader import Held
from sonic_kv.session.engine import Engine

# of Triton's interpreter
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None
    or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs Triton, and a GPU or TRITON_INTERPRET=1",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
HALF, GREEDY = Budget(compression_ratio=0.5), SamplingConfig(max_new_tokens=12, temperature=0.0)


def chat_of(model: SonicModel, text: str, bits: Bits | None = None) -> ChatSession:
    """A dialogue whose heads hold different numbers of entries."""
    chat = ChatSession(model, HALF, config=SessionConfig(16, 40, bits=bits), sampling=GREEDY)
    for message in (f"{text}, a message of some length", "a second one", "a third"):
        chat.send(message)
    assert not chat.cache.even
    return chat


def caches_of(model: SonicModel, bits: Bits | None = None) -> list[SessionCache]:
    return [chat_of(model, text, bits).cache for text in ("first", "another topic", "third")]


def on_device() -> SonicModel:
    model = tiny_model()
    return SonicModel(model.base.to(DEVICE), model.tokenizer)


def rows_at(anchor: torch.Tensor, at: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """What stands at an address of the table."""
    address = anchor.data_ptr() + int(at) * ALIGNED
    numbers = (ctypes.c_float * (count * width)).from_address(address)
    return torch.frombuffer(numbers, dtype=torch.float32).view(count, width)


def assert_shown(together: Together, caches: list[SessionCache]) -> None:
    """Tables show every head of the caches, whose newest entry is to come."""
    heads = [[layer.heads() for layer in cache.layers] for cache in caches]
    for number in range(len(caches[0].layers)):
        keys, values = ([head for cache in heads for head in cache[number][of]] for of in range(2))
        sizes = together.sizes[number].tolist()
        assert sizes[: len(keys)] == [len(head) - 1 for head in keys]
        assert all(size < 0 for size in sizes[len(keys) :])
        for at, held in ((together.key_at, keys), (together.value_at, values)):
            for place, head in zip(at[number], held, strict=False):
                assert torch.equal(rows_at(together.anchor, place, *head.shape), head)


@pytest.mark.parametrize("bits", [None, 4])
def test_tables_show_every_head_and_counting_goes_on(bits: Bits | None) -> None:
    model = tiny_model()
    caches = caches_of(model, bits)
    for cache in caches:
        cache.pack()
    together = Together(caches, 4)
    for step in range(80):  # some buffers grow meanwhile, each when it is full
        together.take(caches)
        together.settle()
        assert_shown(together, caches)
        together.count()
        if step == 20:
            caches[1] = caches[0].fork()  # is overtaken, and moves
        if step == 25:  # they change places
            other = caches[0].fork()
            caches[0].restore(caches[2])
            caches[2].restore(other)
        if step == 30:
            caches[0].drop_newest(3)
        if step == 40:
            caches.pop(1)
        if step == 50:
            caches.append(model.new_cache())
            model.feed(caches[-1], [1, 2, 3])
        if step == 60:
            model.feed(caches[0], [1])  # somewhere else


def test_what_others_fill_and_what_is_appended_follow_one_another() -> None:
    cache = caches_of(tiny_model())[0]
    layer = cache.layers[0]
    keys, values = layer.heads()
    width, new = keys[0].shape[1], torch.randn(3, 2, len(keys), 1, keys[0].shape[1])
    for number, (key, value) in enumerate(new):
        if number == 1:
            claim([layer], 1, 0)
            layer.take()
            for held, fresh in zip((*layer.heads()[0], *layer.heads()[1]), (*key, *value), strict=True):
                held[-1] = fresh
        else:
            layer.append(key[None], value[None])
    for head, (found, told) in enumerate(zip(*layer.heads(), strict=True)):
        assert torch.equal(found, torch.cat([keys[head], new[:, 0, head].view(-1, width)]))
        assert torch.equal(told, torch.cat([values[head], new[:, 1, head].view(-1, width)]))


def test_nothing_changes_without_a_gpu() -> None:
    caches = caches_of(tiny_model())
    assert not fits(caches)
    assert not fits([SessionCache(3)])


def test_few_graphs_serve_all_batches() -> None:
    rows = [rows_of(n) for n in range(1, 257)]
    assert all(n <= made < n + 8 for n, made in enumerate(rows, 1))
    assert len(set(rows)) == 3 + 256 // 8


# --- kernels -----------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("width", "rows", "window", "softcap", "parts"),
    [(16, 3, None, None, 4), (128, 4, None, None, None), (24, 1, None, 5.0, 8), (64, 2, 50, None, 2)],
)
def test_kernels_attend_as_head_by_head(
    width: int, rows: int, window: int | None, softcap: float | None, parts: int | None, dtype: torch.dtype
) -> None:
    from sonic_kv.cache import kernels

    generator = torch.Generator().manual_seed(0)
    sizes = [1, 0, 70, 130, 64, 63, 200]  # before the new entry

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    keys, values = ([drawn(n + 1, width) for n in sizes] for _ in range(2))
    stored = [[torch.cat([of[:-1], of.new_zeros(5, width)]) for of in all_] for all_ in (keys, values)]
    anchor = keys[0].new_empty(ALIGNED)
    at = [[(of.data_ptr() - anchor.data_ptr()) // ALIGNED for of in all_] + [0] for all_ in stored]
    key_at, value_at = torch.tensor(at, device=DEVICE)
    held = torch.tensor([*sizes, -(1 << 30)], dtype=torch.int32, device=DEVICE)
    query, nothing = drawn(len(sizes) + 1, rows, width), drawn(1, width)
    new = [torch.cat([*(of[-1:] for of in all_), nothing]) for all_ in (keys, values)]
    kernels.append(anchor, *new, key_at, value_at, held)
    found = kernels.attend(
        anchor, query, key_at, value_at, held, scale=0.3, softcap=softcap, window=window, parts=parts
    )
    for number, n in enumerate(sizes):
        assert torch.equal(stored[0][number][: n + 1], keys[number])
        seen = [of[number][-(window or 1000) :].float()[None, None] for of in (keys, values)]
        own = query[number][None, :, None].float()
        expected = attend_heads(own, seen[:1], seen[1:], None, scale=0.3, softcap=softcap)[0, :, 0]
        accuracy = 1e-5 if dtype == torch.float32 else 5e-3
        torch.testing.assert_close(found[number].float(), expected, atol=accuracy, rtol=accuracy)
    assert not found[-1].any()


@torch.no_grad()
def together_step(model: SonicModel, caches: list[SessionCache], token_ids: list[int]) -> torch.Tensor:
    rows, positions = columns(caches, token_ids, model.device)
    together = Together(caches, len(caches))
    together.take(caches)
    together.settle()
    return forward(model.twin, rows, positions, together)[:, -1]


@torch.no_grad()
def step_alone(model: SonicModel, cache: SessionCache, token_id: int) -> torch.Tensor:
    """As without a GPU: head by head."""
    rows, positions = columns([cache], [token_id], model.device)
    return forward(model.twin, rows, positions, Held([cache], 1, model.dtype, model.device))[0, -1]


def assert_close(found: object, expected: object) -> None:
    accuracy = 1e-5 if DEVICE == "cpu" else 1e-4  # a GPU adds up in another order for every batch size
    torch.testing.assert_close(found, expected, atol=accuracy, rtol=accuracy)


@needs_triton
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_step_together_is_that_of_each_alone(family: str) -> None:
    base = tiny_base(family, **({"sliding_window": 24} if family == "gemma2" else {}))
    model = SonicModel(base.to(DEVICE), tiny_tokenizer())  # gemma2: windows, and caps of the logits
    chats = [ChatSession(model, HALF, config=SessionConfig(16, 40)) for _ in range(2)]
    chats[0].extend(DIALOGUE)
    chats[1].extend(DIALOGUE[:2])
    caches = [chat.cache for chat in chats]
    alone = [cache.fork() for cache in caches]
    for token in range(40 if DEVICE == "cuda" else 2):
        found = together_step(model, caches, [token + n for n in range(len(caches))])
        for number, cache in enumerate(alone):
            assert_close(found[number], step_alone(model, cache, token + number))


# --- graphs ------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
def test_recorded_steps_are_the_models_own() -> None:
    model = on_device()
    caches = caches_of(model)
    alone = [cache.fork() for cache in caches]
    model.compile()
    for token in range(100):  # buffers grow
        count = 1 + token // 10 % 3
        ids = [token + n for n in range(count)]
        found = batch_step(model.twin, caches[:count], ids, model.graph)
        for row, cache, token_id in zip(found, alone, ids, strict=False):
            assert_close(row, step_alone(model, cache, token_id))
    for mine, plain in zip(caches, alone, strict=True):
        for ours, theirs in zip(mine.layers, plain.layers, strict=True):
            assert_close(ours.heads(), theirs.heads())
    assert model.graph is not None
    graphs = [made._graph for made in model.graph._graphs.values()]
    assert len(graphs) == 3
    assert len({graph.pool() for graph in graphs if graph is not None}) == 1  # all compute in the same memory


@pytest.mark.gpu
@needs_gpu
def test_recorded_sessions_and_engines_reply_as_plain_ones() -> None:
    replies = []
    for recorded in (False, True):
        model = on_device()
        if recorded:
            model.compile()
        chats = [chat_of(model, text) for text in ("first", "second", "third")]
        replies.append([chat.send("on").text for chat in chats] + [chats[0].fork().send("more").text])
        engine, turns = Engine(model, slice_tokens=16), [turn(model, number) for number in range(4)]
        for one in turns:
            engine.start(one)
        engine.run()
        replies[-1] += [one.text for one in turns]
    assert replies[0] == replies[1]
