"""How dialogues begin."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, PolicyName, SessionConfig, default_budget
from sonic_kv.compress.policies import Policy
from sonic_kv.model.messages import check_messages
from sonic_kv.model.model import SonicModel, check_model
from sonic_kv.options import expect
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.work import Operation


def empty(
    model: SonicModel,
    budget: Budget | None = None,
    config: SessionConfig | None = None,
    sampling: SamplingConfig | None = None,
    policy: Policy | PolicyName | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Dialogue:
    """A dialogue of no tokens yet.

    Raises:
        ConfigError: an option is of another type, or not for the chat template.
    """
    check_model(model)
    budget = expect(default_budget(model.adapter) if budget is None else budget, Budget, "budget")
    config = expect(SessionConfig() if config is None else config, SessionConfig, "config")
    sampling = expect(SamplingConfig() if sampling is None else sampling, SamplingConfig, "sampling")
    if isinstance(policy, str):
        config, policy = replace(config, policy=policy), None
    compressor = Compressor(model, config, policy)
    told = model.format_told(chat_template_kwargs or {}).options
    return Dialogue(compressor, budget, sampling, compressor.new_cache(), chat_template_kwargs=told)


def begin(
    model: SonicModel,
    budget: Budget | None = None,
    system: str | None = None,
    config: SessionConfig | None = None,
    sampling: SamplingConfig | None = None,
    policy: Policy | PolicyName | None = None,
    slice_tokens: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Operation[Dialogue]:
    """Make a dialogue, and feed what stands before its first message.

    Raises:
        BudgetError: the budget cannot hold it.
        ConfigError: an option is of another type, or not for the chat template.
    """
    dialogue = empty(model, budget, config, sampling, policy, chat_template_kwargs)
    if system is not None:
        dialogue.messages += check_messages([{"role": "system", "content": system}])
    yield from dialogue.feed_prefix(dialogue.format.prefix(system), slice_tokens)
    return dialogue
