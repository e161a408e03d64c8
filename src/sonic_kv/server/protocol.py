"""The bodies of requests, as OpenAI's API has them.

What is only bookkeeping, or says what would happen anyway, is accepted and ignored. What would change the reply, and
is not supported, is refused by name.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sonic_kv.compress.options import Budget
from sonic_kv.model.calls import arguments_of
from sonic_kv.model.messages import fault_of
from sonic_kv.server.options import Engine
from sonic_kv.server.words import HALF
from sonic_kv.session.options import SamplingConfig

T = TypeVar("T")
MOST_CHOICES = 16
MOST_STOPS = 256
TOOL = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MOST_LOGPROBS = 20
COLDEST = 1e-5  # temperatures below it are greedy
PARTS = ("text", "input_text", "output_text")  # kinds of message parts that are text


class RefusedError(Exception):
    """A field asks for what this server does not do; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class Body(BaseModel):
    """A JSON object; a field that is null counts as left out."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


def wrong(message: str) -> PydanticCustomError:
    """What a validator raises to say so in our words."""
    return PydanticCustomError("invalid_value", "{text}", {"text": message})


def whole(text: str) -> str:
    """A text that is made of whole characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(HALF) from error
    return text


def _text_of(content: Any) -> str:
    """The text of a message's content: a string, parts, or nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise wrong("must be a text, or a list of parts that are texts")
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise wrong(f"part {number} must be an object with a type")
        if part["type"] not in PARTS:
            raise wrong(f"part {number} is of type {part['type'][:40]!r}: this server reads text only")
        if not isinstance(part.get("text"), str):
            raise wrong(f"part {number} has no text")
        texts.append(part["text"])
    return "".join(texts)


def _stops(value: Any) -> tuple[str, ...]:
    """Texts that end a reply; empty ones end nothing."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise wrong("must be a text, or a list of texts")
    if len(given) > MOST_STOPS:
        raise wrong(f"must be at most {MOST_STOPS} texts")
    return tuple(filter(None, given))


Text = Annotated[str, AfterValidator(whole)]


def _json(value: T) -> T:
    """A value that can be told as JSON."""
    fault = fault_of(value)
    if fault:
        raise wrong(fault)
    return value


def _tools(value: Any) -> list[dict[str, Any]]:
    """Tools as a request has them, which a chat template is told as they are."""
    if not isinstance(value, list):
        raise wrong("must be a list")
    for number, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise wrong(f"tool {number} must be of type 'function'")
        function = tool.get("function")
        if not isinstance(function, dict) or not TOOL.fullmatch(str(function.get("name", ""))):
            raise wrong(f"tool {number} needs a function with a name of letters, digits or _ . : -")
        if not isinstance(function.get("parameters") or {}, dict):
            raise wrong(f"tool {number} has parameters that are no JSON schema")
    return _json(value)


TEXT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}
OBJECTS = {"type": "array", "items": {"type": "object"}}
TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Content = Annotated[str, BeforeValidator(_text_of), WithJsonSchema(TEXT)]
Stops = Annotated[tuple[str, ...], BeforeValidator(_stops), WithJsonSchema(TEXTS)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
Damage = Annotated[
    float, Field(gt=0.0, allow_inf_nan=False, description="most predicted damage, in nats a later token")
]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0, description="fraction of the history's entries removed")]


class Function(Body):
    """A function that the model has called."""

    name: str
    arguments: Any = ""

    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        given = self.arguments
        return {
            "name": self.name,
            "arguments": given if isinstance(given, dict) else arguments_of(str(given)),
        }


class ToolCall(Body):
    """A call that the model has made."""

    id: str = ""
    function: Function

    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"id": self.id, "type": "function", "function": self.function.plain()}


class ChatMessage(Body):
    """One message of the dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: Annotated[Any, Field(description="of a tool; of others it is ignored")] = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    reasoning_content: Annotated[
        Any, Field(description="of a reply, if it is to be told to the chat template")
    ] = None

    def plain(self) -> dict[str, Any]:
        """The message as the library knows it."""
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        found: dict[str, Any] = {"role": role, "content": self.content}
        if role == "assistant" and self.reasoning_content and isinstance(self.reasoning_content, str):
            found["reasoning_content"] = self.reasoning_content
        if role == "assistant" and self.tool_calls:
            found["tool_calls"] = [call.plain() for call in self.tool_calls]
        if role == "tool":
            found |= {"tool_call_id": self.tool_call_id} if self.tool_call_id else {}
            found |= {"name": self.name} if isinstance(self.name, str) else {}
        return found


class SonicOptions(Body):
    """What this server understands beyond OpenAI's API: how much of a dialogue is removed."""

    model_config = ConfigDict(extra="forbid")
    compression_ratio: Ratio | None = None
    max_damage: Damage | None = None

    @model_validator(mode="after")
    def _one(self) -> "SonicOptions":
        if self.compression_ratio is not None and self.max_damage is not None:
            raise wrong("must have compression_ratio or max_damage, not both")
        return self

    @property
    def budget(self) -> Budget | None:
        """What is asked for; None: nothing."""
        if self.compression_ratio is None and self.max_damage is None:
            return None
        return Budget(compression_ratio=self.compression_ratio, max_damage=self.max_damage)


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Generation(Body):
    """How a reply is to be made. What a request leaves out comes from the server's own settings."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Annotated[int, Field(ge=-1, description="-1: as many as the server makes")] | None = None
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    temperature: Annotated[Finite, Field(ge=0.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1, description="0 or -1: all")] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Stops | None = None
    logit_bias: dict[int, Bias] = {}
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1

    def check(self, engine: Engine) -> None:
        """Refuse what would change the reply and is not supported.

        Args:
            engine: what decodes.

        Raises:
            RefusedError
        """
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED and not UNSUPPORTED[name](value):
                raise RefusedError(name, f"{name}: this server does not support it")

    def sampling(
        self, default: SamplingConfig, most: int, choice: int = 0, grammar: str | None = None
    ) -> SamplingConfig:
        """How a choice's reply is generated, of `most` tokens."""
        asked = self.max_completion_tokens
        asked = self.max_tokens if asked is None else asked
        asked = default.max_new_tokens if asked is None else most if asked < 0 else max(asked, 1)
        temperature = default.temperature if self.temperature is None else self.temperature
        seed = default.seed if self.seed is None or self.seed == -1 else self.seed
        return SamplingConfig(
            max_new_tokens=min(asked, most),
            presence_penalty=_or(self.presence_penalty, default.presence_penalty),
            frequency_penalty=_or(self.frequency_penalty, default.frequency_penalty),
            temperature=0.0 if temperature is not None and temperature < COLDEST else temperature,
            top_k=default.top_k if self.top_k is None else max(self.top_k, 0),
            min_p=_or(self.min_p, default.min_p),
            repetition_penalty=_or(self.repetition_penalty, default.repetition_penalty),
            top_p=default.top_p if self.top_p is None else max(self.top_p, 1e-6),
            logit_bias=tuple(self.logit_bias.items()) or default.logit_bias,
            grammar=grammar or default.grammar,
            stop=self.stop or default.stop,
            seed=None if seed is None else (seed + choice) % (1 << 63),
        )


def _or(given: T | None, otherwise: T) -> T:
    return otherwise if given is None else given


class JsonSchema(Body):
    """A schema, as `response_format` has it."""

    content: Annotated[dict[str, Any], Field(alias="schema")] = {}


class ResponseFormat(Body):
    """What a reply must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def schema_(self) -> dict[str, Any] | None:
        """The JSON schema that the reply must be valid for; None: it is free."""
        if self.type == "json_schema" and self.json_schema is None:
            raise RefusedError("response_format", "response_format: json_schema is missing")
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.content
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    sonic: SonicOptions = SonicOptions()
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_json)] = {}
    response_format: ResponseFormat = ResponseFormat()
    tools: Annotated[list[dict[str, Any]], BeforeValidator(_tools), WithJsonSchema(OBJECTS)] = []
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] = 0

    def check(self, engine: Engine) -> None:
        super().check(engine)
        if self.top_logprobs and not self.logprobs:
            raise RefusedError("top_logprobs", "top_logprobs: give logprobs: true with it")
        if self.logprobs and engine == "vllm":
            raise RefusedError("logprobs", "logprobs: replies that vLLM decodes come without them")
        if "tools" in self.chat_template_kwargs:
            raise RefusedError("chat_template_kwargs", "chat_template_kwargs: give tools as tools")
        forced = self.allowed[1]
        if engine == "vllm" and self.response_format.schema_() is not None:
            raise RefusedError("response_format", "response_format: replies that vLLM decodes are free text")
        if engine == "vllm" and forced:
            raise RefusedError(
                "tool_choice", "tool_choice: replies that vLLM decodes are free text: auto or none"
            )

    @property
    def allowed(self) -> tuple[list[dict[str, Any]], bool]:
        """The tools that may be called, and whether one must be.

        Raises:
            RefusedError: there is no such choice.
        """
        choice = self.tool_choice
        if choice in (None, "auto", "none"):
            return ([] if choice == "none" else self.tools), False
        if choice == "required" and self.tools:
            return self.tools, True
        function = (
            choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        )
        name = function.get("name") if isinstance(function, dict) else None
        named = [tool for tool in self.tools if tool["function"]["name"] == name]
        if not named:
            raise RefusedError(
                "tool_choice",
                "tool_choice: must be none, auto, required with tools, or name one of the tools",
            )
        return named, True


class TextRequest(Body):
    """`POST /tokenize`: a text, or a dialogue."""

    model: str = ""
    prompt: Text = ""
    messages: list[ChatMessage] = []
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_json)] = {}


class SessionChange(SonicOptions):
    """`PATCH /v1/sessions/{id}`: compression from now on; what is kept shrinks at once."""

    @model_validator(mode="after")
    def _some(self) -> "SessionChange":
        if self.budget is None:
            raise wrong("must have compression_ratio or max_damage")
        return self


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in values
    )


def _empty(value: Any) -> bool:
    return not value


# Fields that are not supported, and when they change nothing.
UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "functions": _empty,
    "function_call": _is("none", "auto"),
    "response_format": _is({}, {"type": "text"}),  # this and the next four: of a text that is no dialogue
    "logprobs": _is(False),
    "sonic": _empty,
    "tools": _empty,
    "chat_template_kwargs": _empty,
    "repeat_penalty": _is(1),
    "typical_p": _is(0, 1),
    "best_of": _is(1),
    "use_beam_search": _is(False),
    "modalities": _is([], ["text"]),
    "audio": _empty,
    "web_search_options": lambda value: False,
    "suffix": _empty,
    "echo": _is(False),
    "grammar": _empty,
    "json_schema": _empty,
    "structured_outputs": _empty,
    "guided_json": _empty,
    "guided_regex": _empty,
    "guided_choice": _empty,
    "guided_grammar": _empty,
    "mirostat": _is(0),
    "min_tokens": _is(0),
    "ignore_eos": _is(False),
    "stop_token_ids": _empty,
    "bad_words": _empty,
    "allowed_token_ids": _empty,
}
