"""Tokenised sources on disk: each is read and tokenised once; later runs read the dialogues they draw."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sonic_kv.data.dialogues import read_source
from sonic_kv.files import read_header, write_sealed
from sonic_kv.model.chat_format import ChatFormat
from sonic_kv.model.encoded import Encoded
from sonic_kv.text import Progress

log = logging.getLogger(__name__)
LAYOUT = 2  # of the file: raised when it changes


class TokenisedSource:
    """The dialogues of one source that can be trained on, as tokens.

    Args:
        source: as `read_source` takes it.
        folder: where tokenised sources are kept, one file each.
        max_tokens: longer dialogues are cut.

    Attributes:
        skipped: dialogues left out: no finished exchange, or nothing after the first.

    Raises:
        DataError: the source cannot be read.
        FileError: the folder cannot be written.
    """

    def __init__(
        self, source: str, format: ChatFormat, folder: str | Path, max_tokens: int, *, skip_malformed: bool
    ) -> None:
        self.source = source
        path = Path(folder) / f"{_key(source, format, max_tokens)}.safetensors"
        if not path.exists():
            _tokenise(source, format, path, max_tokens, skip_malformed)
        self.skipped = int(read_header(path)["skipped"])
        if self.skipped:
            log.warning("%s: left out %d dialogues of a single exchange", source, self.skipped)
        self._file = file = _open(path)
        self._starts = file.get_tensor("starts").tolist()  # of tokens
        self._exchanges = file.get_tensor("exchanges").tolist()  # starts of their ends
        self._prefixes = file.get_tensor("prefixes").tolist()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __getitem__(self, number: int) -> Encoded:
        tokens = slice(self._starts[number], self._starts[number + 1])
        ends = slice(self._exchanges[number], self._exchanges[number + 1])
        return Encoded(
            self._file.get_slice("ids")[tokens].tolist(),
            self._prefixes[number],
            self._file.get_slice("ends")[ends].tolist(),
            self._file.get_slice("assistant")[tokens].tolist(),
        )


def _open(path: Path) -> Any:
    return safe_open(path, framework="pt")


def _key(source: str, format: ChatFormat, max_tokens: int) -> str:
    """Changes with everything that the tokens depend on: the files' sizes and times stand for their content."""
    path, files = Path(source), []
    if path.exists():
        parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
    tokenizer = format.tokenizer
    rules = [tokenizer.backend_tokenizer.to_str(), str(getattr(tokenizer, "chat_template", None))]
    text = json.dumps([LAYOUT, source, files, rules, max_tokens])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _tokenise(source: str, format: ChatFormat, path: Path, max_tokens: int, skip_malformed: bool) -> None:
    ids: list[
        torch.Tensor
    ] = []  # compact tensors: a dialogue's Python numbers would take eight times the room
    assistant: list[torch.Tensor] = []
    ends: list[int] = []
    starts, exchanges, prefixes, skipped = [0], [0], [], 0
    with Progress("dialogue", None) as bar:
        for dialogue in read_source(source, skip_malformed=skip_malformed):
            encoded = truncate(format.encode(dialogue["messages"]), max_tokens)
            bar.add(note=f"making tokens of {source}")
            if not trainable(encoded):
                skipped += 1
                continue
            ids.append(torch.tensor(encoded.token_ids, dtype=torch.int32))
            assistant.append(torch.tensor(encoded.assistant))
            ends += encoded.exchange_ends
            starts.append(starts[-1] + len(encoded.token_ids))
            exchanges.append(len(ends))
            prefixes.append(encoded.prefix_length)
    empty = torch.empty(0, dtype=torch.int32)
    tensors = {
        "ids": torch.cat([empty, *ids]),
        "assistant": torch.cat([empty.bool(), *assistant]),
        "ends": torch.tensor(ends, dtype=torch.int32),
        "starts": torch.tensor(starts),
        "exchanges": torch.tensor(exchanges),
        "prefixes": torch.tensor(prefixes, dtype=torch.int64),
    }
    write_sealed(path, "tokens", {"source": source, "max_tokens": max_tokens, "skipped": skipped}, tensors)


def trainable(encoded: Encoded) -> bool:
    """Whether a segment can be closed with something to predict after it."""
    return bool(encoded.exchange_ends) and len(encoded.token_ids) > encoded.exchange_ends[0] + 1


def truncate(encoded: Encoded, max_tokens: int) -> Encoded:
    """The dialogue's first `max_tokens` tokens."""
    return Encoded(
        encoded.token_ids[:max_tokens],
        min(encoded.prefix_length, max_tokens),
        [end for end in encoded.exchange_ends if end <= max_tokens],
        encoded.assistant[:max_tokens],
    )
