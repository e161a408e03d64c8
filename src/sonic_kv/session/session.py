"""`ChatSession`: one dialogue whose past is compressed as it grows."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.export import Export
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, PolicyName, SessionConfig
from sonic_kv.compress.policies import Policy
from sonic_kv.files import read_sealed, write_sealed
from sonic_kv.model.messages import Message
from sonic_kv.model.model import SonicModel
from sonic_kv.options import expect
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.reply import Written
from sonic_kv.session.state import dialogue_of, export_of, state_of
from sonic_kv.session.stats import SessionStats
from sonic_kv.session.work import drive, run


@dataclass(frozen=True)
class Usage:
    """What one reply took. Counts are tokens, `seconds` ends with the reply's last token."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class Reply:
    """The assistant's text, why it ended ("stop" or "length"), what it took, and the reasoning before the text."""

    text: str
    finish_reason: str
    usage: Usage
    reasoning: str = ""


class ChatSession:
    """One dialogue whose past is compressed as it grows.

    A call that fails leaves the session as it was before the call.

    Args:
        model: base and adapter.
        budget: limit of the cache; default: half of the history's entries are removed, with an adapter 80 %.
        system: system prompt; part of the prefix, never compressed.
        config: segments, positions, selection.
        sampling: how replies are generated unless a call says otherwise.
        policy: which entries are kept, by name or an object of your own; None: what `config` names.
        chat_template_kwargs: what the chat template is told beside the messages, as {"enable_thinking": False}.
        dialogue: one that exists, to go on with; then all but the model are its own.

    Attributes:
        dialogue: what the session is made of; an `Engine` works on many.
        last_reply: the newest reply of `send` or `stream`.
    """

    def __init__(
        self,
        model: SonicModel,
        budget: Budget | None = None,
        system: str | None = None,
        config: SessionConfig | None = None,
        sampling: SamplingConfig | None = None,
        *,
        policy: Policy | PolicyName | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        dialogue: Dialogue | None = None,
    ) -> None:
        if dialogue is None:
            dialogue = Dialogue.new(Compressor(model, config, policy), budget, sampling, chat_template_kwargs)
            run(model, dialogue.begin(system))
        self.dialogue = dialogue
        self.last_reply: Reply | None = None

    # --- talking ------------------------------------------------------------------------------

    def send(self, text: str | None, sampling: SamplingConfig | None = None) -> Reply:
        """Say `text` and return the reply; None answers a user message that `extend` appended.

        Raises:
            ContextLengthError: the dialogue does not fit the model's positions.
            NumericalError: the model's logits are not finite.
            BudgetError: the budget cannot hold the prefix.
        """
        for _ in self.stream(text, sampling):
            pass
        assert self.last_reply is not None
        return self.last_reply

    def stream(self, text: str | None, sampling: SamplingConfig | None = None) -> Generator[str, None, None]:
        """Say `text` and yield the reply piece by piece; then `last_reply` is set.

        The segment is closed after the last piece. A stream that is not read to its end is undone.
        """
        start = end = time.perf_counter()
        with closing(drive(self.model, self.dialogue.answer(text, sampling))) as driving:
            while True:
                try:
                    piece = next(driving)
                except StopIteration as stop:
                    written: Written = stop.value
                    break
                if piece is not None:
                    end = time.perf_counter()
                    if piece.text:
                        yield piece.text
        usage = Usage(written.prompt_tokens, len(written.token_ids), end - start)
        self.last_reply = Reply(written.text, written.finish_reason, usage, written.reasoning)

    def extend(self, messages: Sequence[Message]) -> None:
        """Append messages that are already written; nothing is generated.

        Raises:
            MessageError: a message has an unknown role, no text, or comes out of order.
            ContextLengthError: the dialogue does not fit the model's positions.
            BudgetError: the budget cannot hold the prefix.
        """
        run(self.model, self.dialogue.extend(messages))

    # --- compressing --------------------------------------------------------------------------

    def compress(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """With `closing="asked"`: close what the last exchange left open, while the user thinks.

        If the next message comes first, the session goes on over the raw segment, which is closed with
        that exchange: waiting for a reply never includes a closing. What is left open for long is closed
        after a reply (when it has half of `max_segment_tokens`).

        Args:
            cancelled: asked a few times on the way; once it says yes, nothing has happened.

        Returns:
            whether a segment was closed.
        """
        self.dialogue.check_idle()
        if not self.pending:
            return False
        with closing(drive(self.model, self.dialogue.compress())) as driving:
            return not any(cancelled() for _ in driving)

    def set_budget(self, budget: Budget) -> None:
        """Change the budget. A lower one shrinks the memory at once and does not run the model.

        The open segment follows when it is closed: with no budget before, that is the whole dialogue.
        What has been dropped does not come back: a higher budget holds for what is still to come.

        Lowering in steps is lowering once, unless the segments have shares of their own (`allocation="segment"`).
        It equals compressing with the lower budget in the first place while one segment is closed and the
        kept tokens were re-encoded in both; later segments were encoded with more memory in sight.

        Raises:
            BudgetError: it cannot hold the prefix.
        """
        self.dialogue.set_budget(budget)

    def set_sampling(self, sampling: SamplingConfig) -> None:
        """Change how replies are generated unless a call says otherwise."""
        self.dialogue.sampling = expect(sampling, SamplingConfig, "sampling")

    # --- copies and files ---------------------------------------------------------------------

    def fork(self) -> "ChatSession":
        """A copy that goes on by itself."""
        other = ChatSession(self.model, dialogue=self.dialogue.copy())
        other.last_reply = self.last_reply
        return other

    def save(self, path: str | Path) -> None:
        """Write the session to a sealed safetensors file, atomically."""
        write_sealed(path, "session", *self.state())

    @classmethod
    def load(cls, model: SonicModel, path: str | Path, *, policy: Policy | None = None) -> "ChatSession":
        """Continue a saved session.

        Args:
            policy: which entries are kept from now on; None: the saved session's, if it is one of ours.

        Raises:
            FileError: missing, damaged or changed.
            AdapterError: saved with another model or adapter.
            ConfigError: its policy is not one of ours, and none is given.
        """
        return cls(model, dialogue=dialogue_of(model, *read_sealed(path, "session"), str(path), policy))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header (for JSON) and tensors of the session's file."""
        return state_of(self.dialogue)

    @classmethod
    def from_state(
        cls,
        model: SonicModel,
        header: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        policy: Policy | None = None,
    ) -> "ChatSession":
        """The session that `state` took apart, with the errors of `load`."""
        return cls(model, dialogue=dialogue_of(model, header, tensors, "state", policy))

    def export(self, folder: str | Path) -> Export:
        """Write prefix and memory for an engine that holds ordinary KV: `folder/digest.safetensors`.

        The open segment is not in the file: its tokens, `open_ids`, are ordinary prompt tokens there.

        Raises:
            ConfigError: the session's positions are not compact.
            UnsupportedModelError: the model has a sliding window.
            MessageError: nothing is stored yet.
            FileError: the file cannot be written.
        """
        return export_of(self.dialogue)(folder)

    # --- what it is ---------------------------------------------------------------------------

    @property
    def model(self) -> SonicModel:
        """Base and adapter."""
        return self.dialogue.model

    @property
    def config(self) -> SessionConfig:
        """Segments, positions, selection."""
        return self.dialogue.config

    @property
    def policy(self) -> Policy:
        """Which entries are kept."""
        return self.dialogue.compressor.policy

    @property
    def budget(self) -> Budget:
        """Limit of the cache."""
        return self.dialogue.budget

    @property
    def sampling(self) -> SamplingConfig:
        """How replies are generated unless a call says otherwise."""
        return self.dialogue.sampling

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.dialogue.system

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All that was said."""
        return self.dialogue.messages

    @property
    def token_ids(self) -> list[int]:
        """The transcript: all tokens that were fed."""
        return self.dialogue.token_ids

    @property
    def cache(self) -> SessionCache:
        """Keys and values."""
        return self.dialogue.cache

    @property
    def stats(self) -> SessionStats:
        """Entries, bytes and segments as they are now."""
        return self.dialogue.stats

    def predicted_damage(self, budget: Budget | None = None) -> float | None:
        """What all that was dropped is predicted to cost later replies: KL divergence from full context, nats a token.

        The open segment is not part of it: nothing of it is dropped yet.

        Args:
            budget: what it would be if the memory shrank to this one now; nothing is dropped. None: as it is.

        Returns:
            None: the policy's scores are not known in nats.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        return self.dialogue.compressor.predicted_damage(self.cache, budget)

    @property
    def pending(self) -> bool:
        """Whether there is a segment that `compress` would close."""
        return self.dialogue.pending
