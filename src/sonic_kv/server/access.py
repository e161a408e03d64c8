"""Who may call: API keys, compared in constant time, and the namespace that belongs to each."""

import hashlib
import hmac
import os
from pathlib import Path

from sonic_kv.errors import ConfigError, FileError

VARIABLE = "SONIC_KV_API_KEYS"


def read_keys(path: str | None) -> tuple[str, ...]:
    """The keys in a file, one a line, and in the environment; none: the server is open.

    Raises:
        FileError: the file cannot be read.
        ConfigError: it holds no key, or one that no header can carry.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise FileError(f"cannot read the API keys in {path}: {reason}") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"{path} holds no API key: write one a line, or leave --api-keys out")
        keys += found
    keys = list(filter(None, keys))
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ConfigError("an API key must be printable ASCII without spaces")
    return tuple(keys)


class Access:
    """Checks `Authorization` headers. Keys themselves are not kept."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def namespace(self, header: str | None) -> str | None:
        """The namespace of the key in a header; None: no key of ours. An open server has one for all."""
        if not self._digests:
            return "open"
        scheme, _, key = (header or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest in self._digests:  # all of them, whichever fits: time tells nothing
            if hmac.compare_digest(digest, given) and scheme.lower() == "bearer":
                found = digest
        return None if found is None else found.hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(b"sonic-kv namespace\0" + key.encode("utf-8", "surrogateescape")).digest()
