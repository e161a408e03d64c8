"""Messages → token ids, exchanges and segments, as the tokenizer's chat template has them.

The template is the truth: a dialogue is rendered whole, before and after its new messages, and what the second text
has more is what is fed. Token ids are those of `apply_chat_template`, with one exception: a special token that a
message spells out is only text. What has been fed ends where no continuation changes a token.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

from sonic_kv.errors import ConfigError, MessageError, UnsupportedModelError
from sonic_kv.model.calls import PROBE, CallForm, call_form
from sonic_kv.model.common import common, same
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.messages import Message, check_messages, ends_exchange, fault_of
from sonic_kv.model.tokens import Tokens
from sonic_kv.text import reason

# Probe texts that no template rewrites: plain words, no surrounding space.
_PROBES = ("probeone", "probetwo", "probethree", "probefour")
_USER: Message = {"role": "user", "content": "probefive"}
_ASSISTANT: Message = {"role": "assistant", "content": "probesix"}
_CONTEXT = [{"role": "user", "content": _PROBES[0]}, {"role": "assistant", "content": _PROBES[1]}]
MOST_OPTIONS = 64  # ways to tell a template something, of which each is remembered
REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # tags as templates write them


@dataclass(frozen=True)
class Step:
    """How a transcript becomes another one: tokens to take back from its end, then tokens to feed."""

    drop: int
    token_ids: list[int]


def step(before: Sequence[int], after: Sequence[int]) -> Step:
    """The shortest way from one transcript to another."""
    kept = same(before, after)
    return Step(len(before) - kept, list(after[kept:]))


class ChatFormat:
    """What a tokenizer's chat template makes of messages, or a plain format where it has none.

    Args:
        options: what the template is told beside the messages, as `enable_thinking` or `tools`.
        tokens: the tokenizer, and what messages may not spell, if the same template is known already.

    Attributes:
        stop: texts that end a reply, where no token does.
        stop_ids: tokens that close a reply.
        reasoning: the tags around a reply's reasoning, if the template knows any.

    Raises:
        MessageError: the template cannot render a dialogue of user and assistant.
        ConfigError: an option is none of the template's.
    """

    def __init__(
        self, tokenizer: Any, options: Mapping[str, Any] | None = None, tokens: Tokens | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.options = dict(options or {})
        self._told = lru_cache(MOST_OPTIONS)(self._with_options)
        self.plain = not getattr(tokenizer, "chat_template", None)
        self.stop: tuple[str, ...] = ()
        self._tokens = tokens or Tokens(tokenizer)
        source = "" if self.plain else _source(tokenizer.chat_template)
        self.reasoning = next((tags for tags in REASONING if all(tag in source for tag in tags)), None)
        self._check_options()
        self._read(source if tokens is None else None)

    def with_options(self, options: Mapping[str, Any]) -> "ChatFormat":
        """The same template, told something else."""
        return self if options == self.options else self._told(json.dumps(dict(options)))

    def _with_options(self, options: str) -> "ChatFormat":
        return ChatFormat(self.tokenizer, json.loads(options), self._tokens)

    def _check_options(self) -> None:
        """Refuse what would change how a template is applied, and not what it says."""
        taken = {
            *signature(self.tokenizer.apply_chat_template).parameters,
            *self.tokenizer.special_tokens_map,
            "messages",
        }
        strange = [name for name in self.options if name in taken - {"tools", "documents"}]
        if strange or not all(map(str.isidentifier, self.options)):
            name = next(iter(strange), "a name")
            raise ConfigError(f"chat_template_kwargs: {name} is not for the chat template: leave it out")
        if self.plain and self.options:
            raise ConfigError("chat_template_kwargs: the tokenizer has no chat template that could read them")
        if fault := fault_of(self.options):
            raise ConfigError(f"chat_template_kwargs {fault}")

    # --- text -----------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """The template's text of the messages; `generation`: up to where a reply begins.

        Raises:
            MessageError: the template refuses them.
        """
        messages = [self._tokens.marked(message) for message in messages]
        if self.plain:
            return self._render_plain(messages, generation)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **{name: self._tokens.mark(value) for name, value in self.options.items()},
                )
            )
        except Exception as error:  # Jinja errors are whatever the template's author raised
            roles = [message["role"] for message in messages]
            shown = ", ".join(roles if len(roles) <= 6 else ["…", *roles[-5:]])
            advice = "; put the system prompt into the first user message" if roles[0] == "system" else ""
            raise MessageError(
                f"the chat template refuses the roles {shown}: {reason(error)}{advice}"
            ) from error

    def _render_plain(self, messages: Sequence[Message], generation: bool) -> str:
        text = self.tokenizer.bos_token or ""
        for message in messages:
            content = message["content"]
            if message["role"] == "system":
                text += content + "\n\n"
            elif message["role"] == "assistant":
                text += (
                    "Assistant:" + (" " if content and not content.startswith(" ") else "") + content + "\n"
                )
            else:
                text += f"User: {content}\n"
        return text + ("Assistant:" if generation else "")

    def _read(self, source: str | None) -> None:
        """Find what stands around messages in the middle of a dialogue.

        Args:
            source: the template; None: it is known what messages may not spell.
        """
        u1, a1, u2, a2 = _PROBES
        dialogue: list[Message] = [
            *_CONTEXT,
            {"role": "user", "content": u2},
            {"role": "assistant", "content": a2},
        ]
        text = self.render(dialogue)
        try:
            head, rest = text.split(u1)
            _, rest = rest.split(a1)
            between, rest = rest.split(u2)
            header, end = rest.split(a2)
        except ValueError as error:
            raise MessageError(
                "the chat template repeats or rewrites message texts: not supported"
            ) from error
        cut = self._tokens.cut(head, between, end)
        self._close, self._user_open = between[:cut], between[cut:]
        if source is not None:
            self._tokens.protect(source, text.partition(u2)[0] + header + end, self.reasoning or ())
        self.stop_ids = tuple((self._tokens.named(end) or self._tokens.named(between))[:1])
        if not self.stop_ids and between.strip():
            self.stop = (end.strip() or between.rstrip(),)
        self._check()

    def _check(self) -> None:
        """Compare token ids with the template's own, over a grid; a dialogue must only grow at its end."""
        a, b = "probe one", "  two words\n\nand more \n"
        for start in ([], [{"role": "system", "content": a}]):
            grid = [{"role": role, "content": text} for text in (a, b) for role in ("user", "assistant")]
            for count in range(1, len(grid) + 1):
                messages, generation = [*start, *grid[:count]], bool(count % 2)
                try:
                    text = self.render(messages, generation=generation)
                except MessageError:
                    break
                self._tokens.check(text)
                closed = self.closed(messages)
                longer = self.prompt(messages) if generation else self.closed([*messages, _USER])
                if longer[: len(closed)] != closed and not start:
                    raise MessageError(
                        "the chat template rewrites earlier messages when others follow: a dialogue's cache cannot grow"
                    )

    # --- token ids ------------------------------------------------------------------------------

    def prefix(self, system: str | None = None, first: str = "user") -> list[int]:
        """Token ids that stand before the first message, whatever it says.

        They are never empty: with neither BOS nor system prompt the first header, or what all headers have in common,
        is the prefix (models need their first tokens as attention sink).

        Args:
            first: the first message's role; it matters where no token is common to all headers.

        Raises:
            MessageError: the template takes no system prompt, or moves it.
        """
        start = [] if system is None else [{"role": "system", "content": system}]
        text = self.render([*start, _USER])
        head = text[: text.rfind(_USER["content"])]
        later = self._render_or([*start, _USER, _ASSISTANT, _CONTEXT[0]], text)
        if not later.startswith(head):
            # some of it stands before the newest message, as tools and system do in Mistral's
            return self._stable(text, len(common(head, later)))
        if head.endswith(self._user_open) and len(head) > len(self._user_open):
            return self._stable(text, len(head) - len(self._user_open))
        try:
            other = self.render([*start, _ASSISTANT])
        except MessageError:
            other, first = text, "user"
        head_of_other = other[: other.rfind(_ASSISTANT["content"])]
        ids = self._stable(text, len(common(head, head_of_other)))
        if ids and other != text and not start and self._begins(first, ids):
            return ids
        if first == "user":
            return self._stable(text, len(head.rstrip()))
        own = self.render([*start, {"role": first, "content": _USER["content"]}])
        return self._stable(own, len(own[: own.rfind(_USER["content"])].rstrip()))

    def _begins(self, role: str, ids: list[int]) -> bool:
        """Whether a dialogue that this role begins has these tokens first."""
        if role in ("user", "assistant"):  # they are common to both
            return True
        return self._tokens.ids(self.render([{"role": role, "content": _USER["content"]}]))[: len(ids)] == ids

    def closed(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a dialogue as far as it is settled: no message that may follow changes them.

        The reasoning of replies stands there as in the middle of a dialogue, where most templates drop it.
        """
        if not messages or (len(messages) == 1 and messages[0]["role"] == "system"):
            return self.prefix(messages[0]["content"] if messages else None)
        return self._stable(*self._settled(messages))

    def _settled(self, messages: Sequence[Message]) -> tuple[str, int]:
        """A text of the messages and a little more, and where what may follow can begin to change it."""
        own, last = self.render(messages), messages[-1]
        if last.get("tool_calls"):
            answer = {"role": "tool", "content": _PROBES[0], "tool_call_id": last["tool_calls"][0].get("id")}
            longer = self._render_or([*messages, answer], own)
        elif last["role"] == "assistant":
            longer = self._render_or([*messages, _USER], own)
            before = longer[: longer.rfind(_USER["content"])]
            if len(longer) > len(before) and before.endswith(self._user_open):
                return longer, len(before) - len(self._user_open)
        else:
            longer = self.render(messages, generation=True)
            if longer == own:
                longer = self._render_or([*messages, _ASSISTANT], own)
        return longer, len(common(own, longer))

    def _render_or(self, messages: Sequence[Message], other: str) -> str:
        try:
            return self.render(messages)
        except MessageError:
            return other

    def prompt(self, messages: Sequence[Message], *, begun: str = "") -> list[int]:
        """Token ids after which the reply to the last message begins, or goes on if its beginning is given."""
        text = self.render(messages, generation=True)
        if begun:
            said = self._tokens.marked({"role": "assistant", "content": begun})["content"]
            text += f" {said}" if self.plain and not begun.startswith(" ") else said
        return self._tokens.ids(text)

    def _stable(self, text: str, cut: int) -> list[int]:
        """Token ids of `text` that lie before `cut` and stay what they are, whatever stands behind it."""
        before = self._tokens.ids(text[:cut])
        return before[: same(before, self._tokens.ids(text))]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Token ids of a whole dialogue, as a session would feed them."""
        messages = check_messages(messages)
        ids = self.closed(messages)
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        rest = messages[system is not None :]
        prefix = self.prefix(system, rest[0]["role"] if rest else "user")
        replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        spans = self._spans_nearby(messages, replies, ids) or self._spans(messages, replies, ids)
        written = [False] * len(ids)
        for start, end in spans:
            written[start:end] = [True] * max(end - start, 0)
        ends = [
            end for number, (_, end) in zip(replies, spans, strict=True) if ends_exchange(messages[number])
        ]
        return Encoded(ids, same(prefix, ids), ends, written)

    def _spans(
        self, messages: Sequence[Message], replies: Sequence[int], ids: list[int]
    ) -> list[tuple[int, int]]:
        """From where to where in `ids` each reply goes, each found by all that is before it."""
        return [
            (same(self._before_reply(messages[:n]), ids), same(self.closed(messages[: n + 1]), ids))
            for n in replies
        ]

    def _spans_nearby(
        self, messages: Sequence[Message], replies: Sequence[int], ids: list[int]
    ) -> list[tuple[int, int]]:
        """The same, each found by the exchange before it: much faster in long dialogues.

        Empty where the template makes something else of an exchange that stands later.
        """
        spans: list[tuple[int, int]] = []
        begin, last = (
            0,
            int(messages[0]["role"] == "system"),
        )  # what is looked at; what comes after the last reply
        try:
            for n in replies:
                before = self.closed(messages[begin:last])
                after = self.closed(messages[begin : n + 1])
                at = spans[-1][1] if spans else len(before)
                end = at + len(after) - len(before)
                if after[: len(before)] != before or ids[at:end] != after[len(before) :]:
                    return []
                start = same(self._before_reply(messages[begin:n]), after)
                spans.append((at + start - len(before), end))
                begin, last = last, n + 1
        except MessageError:
            return []
        return spans

    def _before_reply(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to a reply's text, header included."""
        if messages:
            return self.prompt(messages)
        text = self.render([_ASSISTANT])
        return self._stable(text, text.rfind(_ASSISTANT["content"]))

    # --- pieces ---------------------------------------------------------------------------------

    def user(self, text: str) -> list[int]:
        """Token ids of a user message in the middle of a dialogue, header included."""
        return self._piece([*_CONTEXT, {"role": "user", "content": text}], _CONTEXT)

    def assistant(self, text: str) -> list[int]:
        """Token ids of a finished reply in the middle of a dialogue, header included."""
        return self._piece([*_CONTEXT, _USER, {"role": "assistant", "content": text}], [*_CONTEXT, _USER])

    def _piece(self, after: Sequence[Message], before: Sequence[Message]) -> list[int]:
        return step(self.closed(before), self.closed(after)).token_ids

    def turns(self, token_ids: Sequence[int]) -> list[int]:
        """Where users' turns begin in a transcript; none if the format cannot tell."""
        one, other = self.user("a"), self.user("0")
        header = one[: same(one, other)]
        if self.plain or not header:
            return []
        ids, size = list(token_ids), len(header)
        return [n for n in range(len(ids) - size + 1) if ids[n] == header[0] and ids[n : n + size] == header]

    def generation_prompt(self) -> list[int]:
        """Token ids after which a reply's text begins, after a user message."""
        return step(self.closed([_USER]), self.prompt([_USER])).token_ids

    def assistant_close(self) -> list[int]:
        """Token ids that follow a reply's text."""
        return self._tokens.ids(self._close)

    @cached_property
    def calls(self) -> CallForm:
        """How the template writes calls of tools.

        Raises:
            UnsupportedModelError: it does not know tools, or its calls cannot be read.
        """
        told = {**self.options, "tools": [PROBE]}
        bare = {name: value for name, value in self.options.items() if name != "tools"}
        if self.plain or self.with_options(told).render([_USER]) == self.with_options(bare).render([_USER]):
            raise UnsupportedModelError("tools: the model's chat template does not know tools")
        tokens = {name: int(self.tokenizer.convert_tokens_to_ids(name)) for name in self._tokens.names}
        return call_form(self.with_options(told).render, self._close, tokens)

    def opens_reasoning(self, messages: Sequence[Message]) -> bool:
        """Whether the reply to these messages begins inside its reasoning."""
        if self.reasoning is None:
            return False
        own, longer = self.render(messages), self.render(messages, generation=True)
        tail = longer[len(common(own, longer)) :]
        return tail.rfind(self.reasoning[0]) > tail.rfind(self.reasoning[1])

    def spelling(self, text: str, start: int, stop: int) -> range:
        """Which tokens of `assistant(text)` spell `text[start:stop]`; all of them if that cannot be said."""
        whole = self.render([*_CONTEXT, _USER, {"role": "assistant", "content": text}])
        piece, spans = self.assistant(text), self._tokens.spans(whole)
        place = self._tokens.locate(whole, text, start, stop)
        if spans is None or place is None:
            return range(len(piece))
        before = len(self.closed([*_CONTEXT, _USER]))
        inside = [i for i, (a, b) in enumerate(spans) if place[0] < b and a < place[1] and i >= before]
        return range(inside[0] - before, inside[-1] + 1 - before) if inside else range(0)

    def spelled(self, messages: Sequence[Message]) -> list[list[tuple[int, str]]] | None:
        """Each message's text in pieces, and which token of `closed(messages)` spells each; None: it cannot be said.

        A character that takes several tokens counts as its first.
        """
        text, _ = self._settled(messages)
        spans = self._tokens.spans(text)
        around = self._around(messages)
        if spans is None or around is None:
            return None
        ends, found, at = [end for _, end in spans], [], 0
        for message, (before, after) in zip(messages, pairwise(around), strict=True):
            start = at + len(before)
            said = self._tokens.marked(message)["content"]
            whole = text.startswith(
                said + after, start
            )  # else the template trims it, or leaves reasoning out
            at = start + len(said) if whole else text.find(after, start)
            if at < 0:
                return None
            pieces, reached = [], start
            for number in range(bisect_right(ends, start), min(bisect_left(ends, at) + 1, len(ends))):
                piece = text[reached : min(ends[number], at)]
                if piece:
                    pieces.append((number, self._tokens.unmarked(piece)))
                reached += len(piece)
            found.append(pieces)
        return found

    def _around(self, messages: Sequence[Message]) -> list[str] | None:
        """What the template writes before, between and behind the messages' texts; None: it leaves some out."""
        texts = [f"probe{number}probe" for number in range(len(messages))]
        probes = [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
        rest, around = self._settled(probes)[0], []
        for text in texts:
            before, found, rest = rest.partition(text)
            if not found:
                return None
            around.append(before)
        return [*around, rest]


def _source(template: Any) -> str:
    return template if isinstance(template, str) else json.dumps(template)
