"""What a chat request asks of the worker: its messages, its tools, and how each of its choices is made."""

import json
import uuid
from dataclasses import replace
from typing import Any

from sonic_kv.model.calls import CallForm, tool_rules
from sonic_kv.model.grammar import json_rule
from sonic_kv.server.dialogue import check_length, checked, without_idle_reasoning
from sonic_kv.server.protocol import ChatRequest, RefusedError
from sonic_kv.server.requests import Request
from sonic_kv.server.service import Service
from sonic_kv.server.tools import Tools


def requests_of(serving: Service, body: ChatRequest, namespace: str, session: str | None) -> list[Request]:
    """A request to the worker for every choice, each a dialogue of its own; the first one has the session's name.

    Raises:
        SonicError: it cannot be answered.
        RefusedError: it asks for what cannot be done.
    """
    model = serving.worker.model
    messages, begun = checked([message.plain() for message in body.messages])
    tools, forced = body.allowed
    told: dict[str, Any] = {**body.chat_template_kwargs, **({"tools": body.tools} if tools else {})}
    texts = [{"content": json.dumps(told)}] if told else []
    check_length(model, [*messages, *texts], serving.most_tokens)
    messages = without_idle_reasoning(model.format_told(told), messages)
    form = model.format.calls if tools else None
    grammar = _grammar(body, form, tools, forced)
    if grammar is not None and begun:
        name = "tool_choice" if forced else "response_format"
        raise RefusedError(
            name, f"{name}: a reply that is begun already cannot follow a grammar: end with another role"
        )
    if grammar is not None:  # read here, and not while others wait for the model
        model.grammars.state(grammar)
    asked = []
    for choice in range(body.n):
        one = Request(namespace, messages, begun=begun, chat_template_kwargs=told)
        one.name = session if choice == 0 else uuid.uuid4().hex
        one.budget = body.sonic.budget
        one.sampling = body.sampling(serving.sampling, serving.options.max_reply_tokens, choice, grammar)
        one.top_logprobs = body.top_logprobs if body.logprobs else None
        if form is not None:
            names = frozenset(tool["function"]["name"] for tool in tools)
            most = None if body.parallel_tool_calls else 1
            one.tools = Tools(form, names, most, uuid.uuid4().hex[:20])
            if most == 1 and form.closing:
                one.sampling = replace(one.sampling, stop=(*one.sampling.stop, form.closing))
        asked.append(one)
    return asked


def _grammar(
    body: ChatRequest, form: CallForm | None, tools: list[dict[str, Any]], forced: bool
) -> str | None:
    """The grammar that the reply must follow: a call, or what is valid for a schema, or either; None: it is free."""
    schema = body.response_format.schema_()
    rules = [] if schema is None or forced else [json_rule(schema)]
    if form is not None and (forced or rules):
        rules += tool_rules(form, tools)
    names = [f"rule_{number}" for number in range(len(rules))]
    lines = [f"{name}: {rule}" for name, rule in zip(names, rules, strict=True)]
    return "\n".join([f"start: {' | '.join(names)}", *lines]) if rules else None
