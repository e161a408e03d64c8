"""`sonic-kv chat`: a dialogue at the terminal, or one user message per line of standard input."""

import sys

from sonic_kv.cli.command import Call, Command
from sonic_kv.cli.loading import load_for_decoding, say_adapter
from sonic_kv.cli.options import ChatOptions, DecodeOptions
from sonic_kv.compress.options import DEFAULT_BUDGET, Budget, SessionConfig
from sonic_kv.errors import ConfigError
from sonic_kv.model.options import ModelOptions
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import percent_text


def run(call: Call) -> None:
    """Begin a session or load one, and talk until the input ends."""
    options, session_options = call.options(ChatOptions), call.options(SessionConfig)
    budget = call.options(Budget) if call.given(Budget) else None  # none: the session's own default
    sampling = call.options(SamplingConfig)
    fixed = [*call.given(SessionConfig), *(["system"] if options.system is not None else [])]
    if options.load is not None and fixed:
        raise ConfigError(f"a saved session keeps its own {', '.join(fixed)}: leave it out with --load")
    model = load_for_decoding(call.options(ModelOptions), compiled=call.options(DecodeOptions).compile)
    say_adapter(model)

    from sonic_kv.cli.repl import Repl
    from sonic_kv.session.session import ChatSession

    if options.load is None:
        session = ChatSession(model, budget, options.system, session_options, sampling)
    else:
        session = ChatSession.load(model, options.load)
        session.set_sampling(call.options(SamplingConfig, base=session.sampling))
        if budget is not None:
            session.set_budget(budget)
    Repl(model, session, as_json=call.json, source=sys.stdin).run()


CHAT = Command(
    "chat",
    f"talk to a model; {percent_text(DEFAULT_BUDGET.compression_ratio or 0)} of the past is removed from its cache "
    "unless a budget says otherwise",
    run,
    {
        "model": ModelOptions,
        "decode": DecodeOptions,
        "chat": ChatOptions,
        "budget": Budget,
        "session": SessionConfig,
        "sampling": SamplingConfig,
    },
    json="one object per reply",
)
