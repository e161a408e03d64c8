"""`POST /v1/completions`: a text, or token ids, gone on with as they are. No dialogue, and nothing is compressed."""

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from sonic_kv.errors import ConfigError
from sonic_kv.model.model import SonicModel
from sonic_kv.server.answers import Completion
from sonic_kv.server.dialogue import check_length
from sonic_kv.server.options import Engine
from sonic_kv.server.protocol import MOST_CHOICES, Generation, RefusedError, whole, wrong
from sonic_kv.server.requests import Outcome
from sonic_kv.session.generate import Piece

PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def _prompts(value: Any) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids."""
    given = value if isinstance(value, list) and not _are_ids(value) else [value]
    if not given or not all(isinstance(one, str) or _are_ids(one) for one in given):
        raise wrong("must be a text, a list of token ids, or a list of such")
    return [whole(one) if isinstance(one, str) else one for one in given]


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


class CompletionRequest(Generation):
    """`POST /v1/completions`."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts), WithJsonSchema(PROMPT)]

    def check(self, engine: Engine) -> None:
        super().check(engine)
        if len(self.prompt) * self.n > MOST_CHOICES:
            raise RefusedError("n", f"n: must be at most {MOST_CHOICES} choices for all prompts together")

    def token_ids(self, model: SonicModel, most: int) -> list[list[int]]:
        """Each prompt's tokens, as the tokenizer has them, special ones too.

        Raises:
            ContextLengthError: a prompt has more than `most` tokens.
            ConfigError: one has none, or the model has no such token.
        """
        found, tokens = [], model.config.vocab_size
        for prompt in self.prompt:
            if isinstance(prompt, str):
                check_length(model, [{"role": "user", "content": prompt}], most)
                prompt = model.tokenizer(prompt)["input_ids"]
            if not prompt:
                raise ConfigError("prompt: is empty: give a text")
            if not all(0 <= token < tokens for token in prompt):
                raise ConfigError(f"prompt: the model's tokens are 0 to {tokens - 1}")
            found.append(prompt)
        return found


class TextCompletion(Completion):
    """The answers to one such request, whole or in chunks."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._head |= {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}

    def _choice(self, index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": None}

    def whole(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        choices = [self._choice(i, one.text, one.finish_reason) for i, one in enumerate(outcomes)]
        return {**self._head, "choices": choices, "usage": self._usage(outcomes)}

    def opening(self, index: int) -> list[dict[str, Any]]:
        return []

    def piece(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        return [{**self._head, "choices": [self._choice(index, piece.text)]}]

    def closing(self, index: int, outcome: Outcome) -> list[dict[str, Any]]:
        return [{**self._head, "choices": [self._choice(index, "", outcome.finish_reason)]}]

    def last(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage(outcomes)}

    def _usage(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        read = sum(outcome.prompt_tokens for outcome in outcomes)
        written = sum(outcome.completion_tokens for outcome in outcomes)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
