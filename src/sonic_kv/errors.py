"""Every exception that sonic-kv raises on purpose.

::

    SonicError
    ├── ConfigError                 an option is unknown, out of range, or contradicts another
    │   └── BudgetError             a budget is empty, negative, contradictory or too small to hold
    ├── DataError                   a dialogue file or line cannot be used (names file and line)
    │   └── MessageError            a message has an unknown role, no text, or comes out of order
    ├── ModelError                  the base model cannot do what is asked
    │   ├── UnsupportedModelError   an architecture that cannot be compressed correctly, and why
    │   ├── ContextLengthError      more tokens than the model has positions
    │   └── NumericalError          NaN or infinite weights, logits or loss
    ├── AdapterError                an adapter does not belong to this base model
    ├── FileError                   a file is missing, truncated, tampered with or of a newer version
    └── ServeError                  the server cannot take a request now or at all
        ├── StoreError              the store of dialogues cannot be reached, or cannot be written
        ├── BusyError               too many requests wait; the same request may succeed later
        ├── UpstreamError           the engine that decodes elsewhere cannot be reached, or failed
        ├── MemoryLimitError        a dialogue that does not fit into the server's memory even alone
        └── NotFoundError           there is no such dialogue

Messages are one line and say what to do. The command line prints them and exits with
`exit_code`; a server maps the class to a status.
"""


class SonicError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(SonicError):
    """An option is unknown, out of range, or contradicts another."""

    exit_code = 2


class BudgetError(ConfigError):
    """A budget is empty, negative, contradictory or too small to hold."""


class DataError(SonicError):
    """A dialogue file or line cannot be used."""


class MessageError(DataError):
    """A message has an unknown role, no text, or comes out of order."""


class ModelError(SonicError):
    """The base model cannot do what is asked."""


class UnsupportedModelError(ModelError):
    """The architecture cannot be compressed correctly; the message says why."""


class ContextLengthError(ModelError):
    """More tokens than the model has positions."""


class NumericalError(ModelError):
    """NaN or infinite weights, logits or loss."""


class AdapterError(SonicError):
    """An adapter does not belong to this base model."""


class FileError(SonicError):
    """A file is missing, truncated, tampered with or of a newer version."""


class ServeError(SonicError):
    """The server cannot take a request now or at all."""


class StoreError(ServeError):
    """The store of dialogues cannot be reached, or cannot be written."""


class BusyError(ServeError):
    """Too many requests wait; `yours` says that they are the client's own."""

    def __init__(self, message: str, *, yours: bool = False) -> None:
        super().__init__(message)
        self.yours = yours


class UpstreamError(ServeError):
    """The engine that decodes elsewhere cannot be reached, or failed."""


class MemoryLimitError(ServeError):
    """A dialogue that does not fit into the server's memory even alone."""


class NotFoundError(ServeError):
    """There is no such dialogue."""
