"""GGUF files: their weights are unpacked once, into a folder of the cache that transformers reads like any other.

The cache lies in `$SONIC_KV_HOME`, or else where the platform keeps caches, and holds at most `$SONIC_KV_CACHE_SIZE`
(default 20GB): models that were not used for longest go first. Only folders that this module wrote are ever removed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from sonic_kv.errors import ConfigError, FileError, ModelError, SonicError, UnsupportedModelError
from sonic_kv.model.weights import read_weights
from sonic_kv.options import parse_bytes
from sonic_kv.text import reason

HOME, SIZE = "SONIC_KV_HOME", "SONIC_KV_CACHE_SIZE"  # environment variables
DEFAULT_SIZE = "20GB"
LAYOUT = 2  # of a folder of the cache: raised when it changes
MARKER = "sonic_kv.json"  # names the files that this module wrote; its time is that of the last use
EDGE = 1 << 20  # bytes at both ends of a file that tell it from others
# a file names one end of a reply; these end one wherever a vocabulary has them, in llama.cpp as well
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
}  # as transformers says
ABANDONED = 24 * 3600  # seconds after which an unfinished folder was left by a crash


def home() -> Path:
    """The folder for what can be made again."""
    if os.environ.get(HOME):
        return Path(os.environ[HOME]).expanduser()
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sonic-kv" / "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sonic-kv"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sonic-kv"


def unpacked(path: Path) -> Path:
    """A folder with the model of a GGUF file: from the cache, or unpacked into it now.

    Weights are kept in bf16, which adds far less than their quantisation has taken away.

    Raises:
        ConfigError: the package `gguf` is not installed.
        FileError: there is no such file, it is damaged, or the cache cannot be written.
        ModelError: transformers cannot read this kind of file.
    """
    check(path)
    root = home() / "gguf"
    folder = root / f"{path.stem[:80]}-{_key(path)}"
    if not (folder / MARKER).is_file():
        if find_spec("gguf") is None:
            raise ConfigError(f"{path} needs the package gguf: pip install 'sonic-kv[gguf]'")
        try:
            root.mkdir(parents=True, exist_ok=True)
            _unpack(path, folder)
        except OSError as error:
            raise FileError(
                f"cannot write the cache {root}: {reason(error)}; {HOME} names another folder"
            ) from error
        limit_cache(root, keep=folder)
    with contextlib.suppress(OSError):
        os.utime(folder / MARKER)
    return folder


def check(path: Path) -> None:
    """Raise `FileError` unless `path` is a GGUF file, and `UnsupportedModelError` if it is only a part of one."""
    if not path.is_file():
        raise FileError(f"cannot load model '{path}': no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise FileError(f"cannot load model '{path}': it is not a GGUF file")
    if "-of-0" in path.stem:
        raise UnsupportedModelError(
            f"{path} is one part of a model: merge the parts first (llama-gguf-split --merge)"
        )


def _key(path: Path) -> str:
    """Stands for the file's content and for what unpacks it, wherever the file lies."""
    stat = path.stat()
    digest = hashlib.sha256(
        json.dumps([LAYOUT, transformers.__version__, stat.st_size, stat.st_mtime_ns]).encode()
    )
    with path.open("rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(stat.st_size - EDGE, 0))
        digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]


def _unpack(path: Path, folder: Path) -> None:
    """Write `folder`, complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        (temporary / MARKER).write_text("{}")
        _convert(path, temporary)
        files = sorted(file.name for file in temporary.iterdir())
        marker = {"source": str(path.resolve()), "files": files}
        (temporary / MARKER).write_text(json.dumps(marker, indent=2))
        with contextlib.suppress(FileExistsError):  # another process was faster
            if not folder.exists():
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(path: Path, folder: Path) -> None:
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # newer versions leave weights packed unless they are told
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        base = read_weights(path.parent, path, **options)
    except SonicError:
        raise
    except Exception as error:  # transformers raises anything from KeyError to its own classes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = f"it is damaged, incomplete, or of a kind that transformers does not read ({reason(error)})"
        raise ModelError(f"cannot load model '{path}': {why}") from error
    words = {i: word for word, i in tokenizer.get_added_vocab().items() if i < base.config.vocab_size}
    ends = {base.generation_config.eos_token_id, *(i for i, word in words.items() if word in ENDS)}
    base.generation_config.update(eos_token_id=sorted(ends - {None}), **_sampling(path))
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sampling(path: Path) -> dict[str, Any]:
    """What the makers say in the file about sampling, as transformers calls it; most files say nothing."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    found = {ours: fields.get(f"general.sampling.{name}") for name, ours in SAMPLING.items()}
    told = {name: field.contents() for name, field in found.items() if field is not None}
    return {"do_sample": True, **told} if told else {}


def limit_cache(root: Path, keep: Path) -> None:
    """Remove the folders that were not used for longest, until the rest fits, and what crashes have left.

    `keep` stays. A folder goes only with the files that its marker lists: one that holds others stays with those.
    """
    limit = parse_bytes(os.environ.get(SIZE) or DEFAULT_SIZE)
    found = []
    for marker in root.glob(f"*/{MARKER}"):
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in marker.parent.iterdir())
            found.append((marker.stat().st_mtime, size, marker.parent))
    for used, _, folder in found:
        if folder.name.startswith(".") and time.time() - used > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
    complete = sorted(item for item in found if not item[2].name.startswith("."))
    total = sum(size for _, size, _ in complete)
    for _, size, folder in complete:
        if total <= limit:
            return
        if folder != keep:
            _remove(folder)
            total -= size


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        names = json.loads((folder / MARKER).read_text())["files"]
        for name in [*(name for name in names if name != MARKER), MARKER]:
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()
