"""SONIC: compresses the KV cache of multi-turn dialogues into a few Nexus tokens per segment.

The public names below are loaded on first use, so that `import sonic_kv` costs nothing and imports
neither torch nor transformers. `generate`, `stream_generate` and `generate_step` live in
`sonic_kv.generate`: a name loaded on first use cannot be the name of a submodule too.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sonic_kv.config import Budget, SamplingConfig, SessionConfig
    from sonic_kv.errors import SonicError
    from sonic_kv.model import SonicModel
    from sonic_kv.session import ChatSession, Reply

__all__ = [
    "Budget",
    "ChatSession",
    "Reply",
    "SamplingConfig",
    "SessionConfig",
    "SonicError",
    "SonicModel",
    "__version__",
]

_HOME = {
    "Budget": "config",
    "ChatSession": "session",
    "Reply": "session",
    "SamplingConfig": "config",
    "SessionConfig": "config",
    "SonicError": "errors",
    "SonicModel": "model",
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
