"""Arguments that are something else are refused at every entrance, in one line that says what is wanted."""

from collections.abc import Callable
from typing import Any

import pytest
from tiny import DIALOGUE, tiny_model

import sonic_kv
from sonic_kv import Budget, Policy, SamplingConfig
from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import SonicError
from sonic_kv.model.adapter import Adapter
from sonic_kv.session.engine import Engine

api: Any = sonic_kv  # called as those call it who have no types
MODEL: Any = tiny_model()
BASE, TOKENIZER, HALF = MODEL.base, MODEL.tokenizer, Budget(compression_ratio=0.5)
engine: Any = Engine
adapter: Any = Adapter


def chat() -> Any:
    session = api.ChatSession(MODEL, HALF)
    session.extend(DIALOGUE[:2])
    return session


WRONG: dict[str, dict[str, Callable[[], Any]]] = {
    "model must be a SonicModel, not": {
        "a session of a transformers model": lambda: api.ChatSession(BASE, HALF),
        "a session of a name": lambda: api.ChatSession("tiny"),
        "a session of nothing": lambda: api.ChatSession(None),
        "a session, swapped": lambda: api.ChatSession(HALF, MODEL),
        "a state": lambda: api.ChatSession.from_state(BASE, {}, {}),
        "generate": lambda: api.generate(BASE, [[1]]),
        "generate, swapped": lambda: api.generate([[1]], MODEL),
        "an engine": lambda: engine(BASE, 8),
    },
    "budget must be a Budget, not": {
        "a session": lambda: api.ChatSession(MODEL, 0.8),
        "a session of a system prompt": lambda: api.ChatSession(MODEL, "be brief"),
        "a budget set": lambda: chat().set_budget(0.5),
    },
    "sampling must be a SamplingConfig, not": {
        "a session": lambda: api.ChatSession(MODEL, sampling={"temperature": 0.5}),
        "an empty one": lambda: chat().send("hi", {}),
        "a reply": lambda: chat().send("hi", 5),
        "a stream": lambda: next(chat().stream("hi", {"temperature": 0.5})),
        "a sampling set": lambda: chat().set_sampling({}),
        "generate": lambda: api.generate(MODEL, [[1]], None, {}),
        "steps": lambda: next(api.generate_step(MODEL, [[1]], [SessionCache(3)], {})),
    },
    "config must be a SessionConfig, not": {
        "a session": lambda: api.ChatSession(MODEL, config={"min_segment_tokens": 5}),
        "a session with a policy": lambda: api.ChatSession(MODEL, config=0.8, policy="recent"),
    },
    "policy must be a name or an object": {
        "a number": lambda: api.ChatSession(MODEL, policy=3),
        "a class": lambda: api.ChatSession(MODEL, policy=Policy),
    },
    "SonicModel takes a model of transformers": {
        "swapped": lambda: api.SonicModel(TOKENIZER, BASE),
        "one of ours": lambda: api.SonicModel(MODEL, TOKENIZER),
        "a number": lambda: api.SonicModel.from_pretrained(3),
    },
    "SonicModel.from_pretrained('tiny') loads one": {"a name": lambda: api.SonicModel("tiny")},
    "no tokenizer is found": {"a tokenizer": lambda: api.SonicModel(BASE)},
    "tokenizer must be a PreTrainedTokenizerBase": {
        "a name": lambda: api.SonicModel(BASE, "tiny"),
        "the model once more": lambda: api.SonicModel(BASE, BASE),
    },
    "adapter must be an Adapter": {"a path": lambda: api.SonicModel(BASE, TOKENIZER, "here")},
    "base must be a PreTrainedModel": {
        "one of ours": lambda: adapter.load(MODEL, "here"),
        "swapped": lambda: adapter.load("here", BASE),
    },
    "a path must be a Path": {
        "an adapter": lambda: adapter.load(BASE, None),
        "an adapter of a model": lambda: api.SonicModel.from_pretrained("tiny", 3),
        "a session, swapped": lambda: api.ChatSession.load("here", MODEL),
        "a file": lambda: chat().save(None),
    },
    "half a character": {
        "a path": lambda: chat().save("a\ud83d"),
        "what the template is told": lambda: api.ChatSession(MODEL, chat_template_kwargs={"x": "\ud83d"}),
    },
    "give a name": {"no name": lambda: api.SonicModel.from_pretrained(" ")},
    "device='cudaa' is none of torch's": {
        "a device": lambda: api.SonicModel.from_pretrained("tiny", device="cudaa")
    },
    "every prompt at least one token": {
        "a text": lambda: api.generate(MODEL, "hi"),
        "texts": lambda: next(api.stream_generate(MODEL, ["hi"])),
        "one prompt": lambda: api.generate(MODEL, [1, 2]),
        "nothing": lambda: api.generate(MODEL, None),
        "no prompts": lambda: next(api.generate_step(MODEL, [], [], SamplingConfig())),
        "a token that is none": lambda: api.generate(MODEL, [[100_000]]),
    },
    "a cache for every prompt": {
        "one cache": lambda: api.generate(MODEL, [[1]], SessionCache(3)),
        "too few": lambda: api.generate(MODEL, [[1], [2]], [SessionCache(3)]),
        "sessions": lambda: api.generate(MODEL, [[1]], [chat()]),
    },
    "slice_tokens=0 must be at least 1": {"an engine": lambda: engine(MODEL, 0)},
    "turn must be a Turn, not": {"a session": lambda: engine(MODEL, 8).start(chat())},
    "message": {
        "a number": lambda: chat().send(3),
        "a text": lambda: chat().extend("hi"),
        "texts": lambda: chat().extend(["hi"]),
        "a config as system prompt": lambda: api.ChatSession(MODEL, HALF, api.SessionConfig()),
    },
}


@pytest.mark.parametrize(
    ("wanted", "call"),
    [(wanted, call) for wanted, calls in WRONG.items() for call in calls],
    ids=lambda text: text.replace(" ", "-"),
)
def test_another_argument_is_refused_in_one_line(wanted: str, call: str) -> None:
    with pytest.raises(SonicError) as caught:
        WRONG[wanted][call]()
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_a_folder_finds_its_tokenizer() -> None:
    loaded = api.SonicModel.from_pretrained("tiny")
    assert api.SonicModel(loaded.base).tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
