"""Grammars that replies follow: which tokens may come next, by llguidance (github.com/guidance-ai/llguidance)."""

import json
import threading
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sonic_kv.errors import ConfigError

MOST_GRAMMARS = 256  # of which each is remembered
SPACE = r"( |\n {0,16})"  # between the parts of JSON: none, or this; or a model may write space without end


class Grammars:
    """The grammars of one tokenizer's texts. The first one takes seconds: all tokens are read.

    Args:
        tokenizer: of a model.
        tokens: how many logits the model has.
        stop_ids: tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, tokens: int, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._size, self._stop_ids = tokenizer, tokens, sorted(stop_ids)
        self._lock = threading.Lock()
        self._tokens: Any = None
        self._compiled = lru_cache(MOST_GRAMMARS)(self._compile)

    def state(self, grammar: str) -> "GrammarState":
        """The beginning of a reply that follows a grammar. Any thread may ask.

        Raises:
            ConfigError: llguidance is not installed, or cannot read the grammar, or no token ends a reply.
        """
        return GrammarState(self._compiled(grammar).deep_copy(), self._size, self._stop_ids)

    def _compile(self, grammar: str) -> Any:
        try:
            import llguidance
            from llguidance.hf import from_tokenizer
        except ModuleNotFoundError as error:
            raise ConfigError("grammars need llguidance: pip install 'sonic-kv[grammar]'") from error
        if not self._stop_ids:
            raise ConfigError("a grammar needs a model whose replies end with a token, and this one has none")
        with self._lock:
            if self._tokens is None:
                try:
                    self._tokens = from_tokenizer(self._tokenizer, self._size, self._stop_ids)
                except ValueError as error:
                    raise ConfigError(f"llguidance cannot read this tokenizer: {error}") from error
        fault = llguidance.LLMatcher.validate_grammar(grammar, self._tokens)
        if fault:
            first = fault.splitlines()[0]
            raise ConfigError(f"the grammar cannot be followed: {first[first.find(': ') + 2 :]}")
        return llguidance.LLMatcher(self._tokens, grammar, log_level=0)


class GrammarState:
    """Where one reply stands in its grammar."""

    def __init__(self, matcher: Any, tokens: int, stop_ids: Collection[int]) -> None:
        self._matcher, self._size, self._stop_ids = matcher, tokens, stop_ids
        self._bits = torch.zeros((tokens + 31) // 32, dtype=torch.int32)
        numbers = torch.arange(tokens, dtype=torch.int32)
        self._word, self._shift = numbers // 32, numbers % 32

    def mask(self, scores: Tensor) -> Tensor:
        """Scores without the tokens that may not come next. (V,) → (V,)

        Raises:
            ConfigError: none may: the grammar is too complex for llguidance.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), 4 * len(self._bits))
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).splitlines()[0]
            raise ConfigError(f"the reply cannot follow its grammar any more: {reason}")
        allowed = (self._bits[self._word] >> self._shift & 1).bool()
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def take(self, token_id: int) -> None:
        """Go on by a token that may come next."""
        if token_id not in self._stop_ids:
            self._matcher.consume_token(token_id)


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON that is valid for a schema."""
    return f"start: {json_rule(schema)}"


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON that is valid for a schema, as a part of a grammar."""
    space = {"x-guidance": {"whitespace_pattern": SPACE}}
    return f"%json {json.dumps({**schema, **space})}"
