"""SONIC: compresses the KV cache of multi-turn dialogues into a few Nexus tokens per segment.

The public names below are loaded on first use, so that `import sonic_kv` costs nothing and imports
neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sonic_kv.compress.options import Budget, SessionConfig
    from sonic_kv.compress.policies import Policy
    from sonic_kv.errors import SonicError
    from sonic_kv.model.model import SonicModel
    from sonic_kv.session.generate import Generation, generate, generate_step, stream_generate
    from sonic_kv.session.options import SamplingConfig
    from sonic_kv.session.session import ChatSession, Reply
    from sonic_kv.session.within import sonic

__all__ = [
    "Budget",
    "ChatSession",
    "Generation",
    "Policy",
    "Reply",
    "SamplingConfig",
    "SessionConfig",
    "SonicError",
    "SonicModel",
    "__version__",
    "generate",
    "generate_step",
    "sonic",
    "stream_generate",
]

_HOME = {
    "Budget": "compress.options",
    "ChatSession": "session.session",
    "Generation": "session.generate",
    "Policy": "compress.policies",
    "Reply": "session.session",
    "SamplingConfig": "session.options",
    "SessionConfig": "compress.options",
    "SonicError": "errors",
    "SonicModel": "model.model",
    "generate": "session.generate",
    "generate_step": "session.generate",
    "sonic": "session.within",
    "stream_generate": "session.generate",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
