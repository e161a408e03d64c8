"""Messages → token ids, exchanges and segments.

A dialogue is rendered with the tokenizer's chat template, taken apart once into its fixed pieces
(what opens and closes each role). Every message is then tokenised by itself, so that a dialogue
only ever grows at its end: what has been fed to the model is never re-rendered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sonic_kv.errors import MessageError

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")

# Probe texts that no template rewrites: plain words, no surrounding space.
_PROBES = ("probeone", "probetwo", "probethree", "probefour")


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `MessageError` unless `messages` is a dialogue: known roles, text contents, system first."""
    if not isinstance(messages, (list, tuple)):
        raise MessageError(f"a dialogue is a list of messages, not {type(messages).__name__}")
    if not messages:
        raise MessageError("the dialogue is empty: give at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise MessageError(f"message {i} needs the keys 'role' and 'content'")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise MessageError(f"message {i} has the unknown role {role!r}: use one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise MessageError(f"message {i} has {type(content).__name__} content: only text is supported")
        if not content.isascii() and re.search(r"[\ud800-\udfff]", content):
            raise MessageError(f"message {i} holds half a character (a lone surrogate)")
        if role == "system" and i > 0:
            raise MessageError(f"message {i} is a system message: it must come first")


@dataclass(frozen=True)
class Encoded:
    """A dialogue as token ids: the raw prefix, then exchanges that end at `exchange_ends`."""

    token_ids: list[int]
    prefix_length: int
    exchange_ends: list[int]
    assistant: list[bool]  # per token: written by the assistant (its closing token included)


class ChatFormat:
    """The fixed pieces of a tokenizer's chat template, or a plain one where it has none.

    Raises:
        MessageError: the template cannot render a plain user/assistant dialogue.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stop: tuple[str, ...] = ()
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        spelled = "|".join(map(re.escape, sorted({*special, *tokenizer.all_special_tokens})))
        self._special = re.compile(f"(?={spelled})" if spelled else r"(?!)")
        if getattr(tokenizer, "chat_template", None):
            self._read_template()
        else:
            self._user_open, self._user_close = "User: ", "\n"
            self._assistant_open = self._generation_open = "Assistant:"
            self._assistant_close = "\n"
            self._head = (tokenizer.bos_token or "") + self._user_open
            self.stop = ("\nUser:",)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The special token that closes an assistant message, if the template closes it with one."""
        special = set(self.tokenizer.all_special_ids)
        return tuple(i for i in self.assistant_close() if i in special)[:1]

    def _render(self, *messages: Message, **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # Jinja errors are whatever the template's author raised
            roles = [message["role"] for message in messages]
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            advice = "; put the system prompt into the first user message" if "system" in roles else ""
            raise MessageError(
                f"the chat template refuses the roles {', '.join(roles)}: {reason}{advice}"
            ) from error

    def _read_template(self) -> None:
        u1, a1, u2, a2 = _PROBES
        dialogue: list[Message] = [
            {"role": "user", "content": u1},
            {"role": "assistant", "content": a1},
            {"role": "user", "content": u2},
            {"role": "assistant", "content": a2},
        ]
        text = self._render(*dialogue)
        try:
            head, rest = text.split(u1)
            user_to_assistant, rest = rest.split(a1)
            assistant_to_user, rest = rest.split(u2)
            end = rest.split(a2)[1]
            user_close = self._render(dialogue[0]).split(u1)[1]
            generation = self._render(dialogue[0], add_generation_prompt=True).split(u1)[1]
        except ValueError as error:
            raise MessageError(
                "the chat template repeats or rewrites message texts: not supported"
            ) from error
        if not (user_to_assistant.startswith(user_close) and generation.startswith(user_close)):
            user_close = ""
        self._user_close = user_close
        self._assistant_open = user_to_assistant[len(user_close) :]
        self._generation_open = generation[len(user_close) :]
        # What stands between a reply and the next user's text closes the reply as far as it stands at a
        # dialogue's end too, and opens the user's turn as far as it stands at a dialogue's beginning.
        close = next(
            (n for n, (a, b) in enumerate(zip(end, assistant_to_user, strict=False)) if a != b), len(end)
        )
        opening = _common_suffix(head, assistant_to_user, list(self.tokenizer.get_added_vocab()))
        cut = max(close, len(assistant_to_user) - len(opening))
        self._assistant_close, self._user_open = assistant_to_user[:cut], assistant_to_user[cut:]
        self._head = head

    def _ids(self, before: str, content: str = "", after: str = "") -> list[int]:
        """Token ids of a piece of the template, or of a message's text between two pieces.

        A special token that the message spells out is only text: it is cut behind its first character.
        """
        ids: list[int] = []
        for piece in self._cut(before, content, after):
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _cut(self, before: str, content: str, after: str) -> list[str]:
        """What is tokenised by itself."""
        text = before + content + after
        cuts = [len(before) + found.start() + 1 for found in self._special.finditer(content)]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)]) if start < end]

    def _head_text(self, system: str | None) -> str:
        if system is None:
            return self._head
        if not getattr(self.tokenizer, "chat_template", None):
            return (self.tokenizer.bos_token or "") + system + "\n\n" + self._user_open
        probe = _PROBES[0]
        text = self._render({"role": "system", "content": system}, {"role": "user", "content": probe})
        return text.rsplit(probe, 1)[0]

    def opening(self, system: str | None) -> tuple[list[int], str]:
        """Token ids of the prefix, and what stands between it and the first user's text.

        The prefix is never empty where the template allows it: with neither BOS nor system prompt
        the first user's header is the prefix (models need their first tokens as attention sink).
        """
        head = self._head_text(system)
        # space belongs to what follows it: tokenizers merge it with the first word of the text
        prefix = head.removesuffix(self._user_open)
        prefix = prefix if 0 < len(prefix) < len(head) else head.rstrip()
        start, end = self._span(head, system)
        return self._ids(prefix[:start], prefix[start:end], prefix[end:]), head[len(prefix) :]

    def _span(self, head: str, system: str | None) -> tuple[int, int]:
        """Where the system prompt stands in `head`, if it spells a special token."""
        if system is None or not self._special.search(system):
            return 0, 0
        before, _, after = self._head_text(_PROBES[1]).partition(_PROBES[1])
        if head not in (before + system + after, before + system.strip() + after):
            raise MessageError("the system prompt spells a special token, and the chat template rewrites it")
        return len(before), len(head) - len(after)

    def user(self, text: str) -> list[int]:
        """Token ids of a user message, header included."""
        return self._ids(self._user_open, text, self._user_close)

    def first_user(self, text: str, opening: str) -> list[int]:
        """Token ids of the first user message, after the prefix that came with `opening`."""
        return self._ids(opening, text, self._user_close)

    def assistant(self, text: str) -> list[int]:
        """Token ids of a finished assistant message, header included."""
        return self._ids(self._assistant_open, self._reply_text(text), self._assistant_close)

    def spelling(self, text: str, start: int, stop: int) -> range:
        """Which tokens of `assistant(text)` spell `text[start:stop]`; all of them if the tokenizer cannot say."""
        if not self.tokenizer.is_fast:
            return range(len(self.assistant(text)))
        reply = self._reply_text(text)
        at, inside, count = len(text) - len(reply) - len(self._assistant_open), [], 0
        for piece in self._cut(self._assistant_open, reply, self._assistant_close):
            found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            for a, b in found["offset_mapping"]:
                if at + a < stop and at + b > start:
                    inside.append(count)
                count += 1
            at += len(piece)
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def _reply_text(self, text: str) -> str:
        plain = not getattr(self.tokenizer, "chat_template", None)
        return " " + text if plain and text and not text.startswith(" ") else text

    def generation_prompt(self) -> list[int]:
        """Token ids after which the assistant's text begins."""
        return self._ids(self._generation_open)

    def assistant_close(self) -> list[int]:
        """Token ids that follow the assistant's text."""
        return self._ids(self._assistant_close)

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Token ids of a whole dialogue, as a session would feed them."""
        check_messages(messages)
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        prefix, opening = self.opening(system)
        ids, assistant, ends = list(prefix), [False] * len(prefix), []
        first = True
        for message in messages[1:] if system is not None else messages:
            written = message["role"] == "assistant"
            if written:
                piece = self.assistant(message["content"])
                head = min(len(self._ids(self._assistant_open)), len(piece))
            else:
                text = message["content"]
                piece = self.first_user(text, opening) if first else self.user(text)
                head = 0
            first = False
            ids += piece
            assistant += [written and i >= head for i in range(len(piece))]
            if written:
                ends.append(len(ids))
        return Encoded(ids, len(prefix), ends, assistant)


def _common_suffix(a: str, b: str, tokens: Sequence[str]) -> str:
    """The longest common suffix that does not begin inside one of `tokens`, as `a` spells them."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    start = len(a) - n
    for token in tokens:
        at = a.rfind(token, 0, start + len(token) - 1)
        if at >= 0 and at < start < at + len(token):
            start = at + len(token)
    return a[start:]


def segment_ends(encoded: Encoded, min_segment_tokens: int, max_segment_tokens: int) -> list[int]:
    """Transcript positions at which a session closes a segment, in order.

    A segment ends with an exchange, as soon as it has `min_segment_tokens`; one that reaches
    `max_segment_tokens` ends there, if more tokens come.
    """
    length = len(encoded.token_ids)
    ends: list[int] = []
    start = encoded.prefix_length
    for end in [*encoded.exchange_ends, None]:
        while (length if end is None else end) - start > max_segment_tokens:
            start += max_segment_tokens
            ends.append(start)
        if end is not None and end - start >= min_segment_tokens:
            ends.append(end)
            start = end
    return ends
