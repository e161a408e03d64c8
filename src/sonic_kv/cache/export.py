"""A session's prefix and memory as a file for other engines: an ordinary KV prefix of P entries.

`<digest>.safetensors`, named by the checksum of its content and never changed. Per layer `N.keys` and
`N.values` (G, P, D) at positions 0 … P − 1, keys rotated as the model's own cache holds them. Reading one
needs neither transformers nor this package's engine.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sonic_kv.errors import FileError
from sonic_kv.files import read_header, read_sealed, write_addressed

KIND = "export"


@dataclass(frozen=True)
class Export:
    """An exported prefix. A request's prompt is `token_ids + open_ids` and the new turn.

    Attributes:
        path: the file.
        digest: names the file's content, 64 hexadecimal digits.
        token_ids: one per entry: the prefix's own, then the same placeholder for every memory entry. (P,)
        open_ids: the open segment's tokens, which are not in the file; empty for an export that was read.
        base: fingerprint of the model that it was made with.
        shape: layers, KV heads, entries, head width.
    """

    path: Path
    digest: str
    token_ids: list[int]
    open_ids: list[int]
    base: dict[str, Any]
    shape: tuple[int, int, int, int]

    def load(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, both (G, P, D), verified.

        Raises:
            FileError: missing, damaged or changed.
        """
        _, tensors = read_sealed(self.path, KIND)
        layers, *shape = self.shape
        try:
            found = [(tensors[f"{n}.keys"], tensors[f"{n}.values"]) for n in range(layers)]
        except KeyError as error:
            raise FileError(f"{self.path} has no tensor {error}") from error
        if any(list(tensor.shape) != shape for pair in found for tensor in pair):
            raise FileError(f"{self.path} holds tensors of another shape than its header says")
        return found


def write_export(
    folder: str | Path,
    base: dict[str, Any],
    token_ids: list[int],
    open_ids: list[int],
    layers: Sequence[tuple[Tensor, Tensor]],
) -> Export:
    """Write keys and values (G, P, D) of every layer into `folder`, under their digest."""
    heads, entries, width = layers[0][0].shape
    shape = (len(layers), heads, entries, width)
    header = {
        "base": base,
        "token_ids": token_ids,
        "shape": shape,
        "dtype": str(layers[0][0].dtype).removeprefix("torch."),
    }
    tensors: dict[str, Tensor] = {}
    for number, (keys, values) in enumerate(layers):
        tensors |= {f"{number}.keys": keys, f"{number}.values": values}
    path, digest = write_addressed(folder, KIND, header, tensors)
    return Export(path, digest, token_ids, open_ids, base, shape)


def read_export(folder: str | Path, digest: str) -> Export:
    """The export of that digest, from its file's header; the tensors are not read.

    Raises:
        FileError: `digest` is none, or the file is missing, damaged, of another kind or of another content.
    """
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise FileError(f"{digest!r:.80} is not the digest of an export: 64 hexadecimal digits")
    path = Path(folder) / f"{digest}.safetensors"
    header = read_header(path)
    if header.get("kind") != KIND or header.get("sha256") != digest:
        raise FileError(f"{path} is not the export of that digest: it was renamed or changed")
    try:
        layers, heads, entries, width = map(int, header["shape"])
        token_ids = [int(token) for token in header["token_ids"]]
        return Export(path, digest, token_ids, [], dict(header["base"]), (layers, heads, entries, width))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} does not fit this version of sonic-kv: {error}") from error
