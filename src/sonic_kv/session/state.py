"""Saved sessions, and what other engines are given of one: dialogues as headers and tensors."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonic_kv.cache.cache import Lengths, SessionCache
from sonic_kv.cache.export import Export, write_export
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.compress.policies import Policy, described, restored
from sonic_kv.errors import AdapterError, ConfigError, FileError, MessageError, UnsupportedModelError
from sonic_kv.model.fingerprint import check_fingerprint
from sonic_kv.model.model import SonicModel, check_model
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.options import SamplingConfig

_COMPUTED = (".keys", ".values", ".channels")  # tensors in the model's dtype
_OLD_VALUES: dict[str, dict[str, Any]] = {
    "allocation": {"pooled": "shared", "global": "per_head"},
    "storage": {"full": None, "int8": 8, "int4": 4},
    "closing": {"idle": "asked"},
}


def state_of(dialogue: Dialogue) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A dialogue as header and tensors.

    Raises:
        MessageError: an operation is under way.
    """
    dialogue.check_idle()
    header = {
        "base": dialogue.model.fingerprint(),
        "adapter": _adapter_digest(dialogue.model),
        "policy": described(dialogue.compressor.policy),
        "budget": asdict(dialogue.budget),
        "config": asdict(dialogue.config),
        "sampling": asdict(dialogue.sampling),
        "messages": dialogue.messages,
        "chat_template_kwargs": dict(dialogue.chat_template_kwargs),
        "lengths": asdict(dialogue.cache.lengths),
        "stats": asdict(dialogue.stats),
    }
    transcript = torch.tensor(dialogue.token_ids, dtype=torch.int64)
    return header, {"token_ids": transcript, **dialogue.cache.state()}


def dialogue_of(
    model: SonicModel,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: str,
    policy: Policy | None = None,
) -> Dialogue:
    """The dialogue that `state_of` took apart.

    Args:
        path: what errors call it.
        policy: which entries are kept from now on; None: as before, if the policy is one of ours.

    Raises:
        AdapterError: saved with another model or adapter.
        FileError: of another version.
        BudgetError: its budget is in nats, which this adapter's scores are not.
        ConfigError: its policy is not one of ours, and none is given.
    """
    check_model(model)
    what = f"session {path}"
    check_fingerprint(header.get("base", {}), model.fingerprint(), what)
    try:
        header = translated(header)
        if header["adapter"] != _adapter_digest(model):
            raise AdapterError(f"{what} was saved with another adapter: load the model with that one")
        config, lengths = SessionConfig(**header["config"]), header["lengths"]
        cache = SessionCache.from_state(
            model.num_layers,
            _copied(model, tensors),
            Lengths(**dict(lengths, segment_starts=tuple(lengths["segment_starts"]))),
            compact=config.positions == "compact",
            bits=config.bits,
            windows=model.windows,
        )
        if not cache.slides:
            raise FileError(
                f"{what} is of a version that compressed layers with a sliding window: make it again"
            )
        dialogue = Dialogue(
            Compressor(model, config, policy or restored(header["policy"], model, what)),
            Budget(**header["budget"]),
            SamplingConfig(**dict(header["sampling"], stop=tuple(header["sampling"]["stop"]))),
            cache,
            [dict(message) for message in header["messages"]],
            tensors["token_ids"].tolist(),
            dict(header.get("chat_template_kwargs", {})),
        )
        dialogue.compressor.check(dialogue.budget, cache)
        return dialogue
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{what} does not fit this version of sonic-kv: {error}") from error


def translated(header: Mapping[str, Any]) -> dict[str, Any]:
    """A saved session's header as it is written today: options had other names before."""
    config = {name: _OLD_VALUES.get(name, {}).get(value, value) for name, value in header["config"].items()}
    config.setdefault("refit", False)  # values stayed as they were
    if "storage" in config:
        config["bits"] = config.pop("storage")
    found = {**header, "config": config}
    if "policy" not in header:
        window = config.pop("window")
        found["policy"] = (
            {"name": "recent", "window": window} if header["adapter"] is None else {"name": "learned"}
        )
    return found


def export_of(dialogue: Dialogue) -> Callable[[str | Path], Export]:
    """What writes a dialogue's prefix and memory for another engine, in any thread, while the dialogue goes on.

    Raises:
        As `ChatSession.export`, but for the writing.
    """
    dialogue.check_idle()
    model, cache, lengths = dialogue.model, dialogue.cache, dialogue.cache.lengths
    if not cache.compact:
        raise ConfigError(
            "an export needs consecutive positions: make the session with SessionConfig(positions='compact')"
        )
    if model.sliding_window is not None:
        raise UnsupportedModelError(
            f"the model has a sliding window of {model.sliding_window} tokens, and an export is for full attention: "
            "use another model"
        )
    end = lengths.prefix + lengths.memory
    if not end:
        raise MessageError("there is nothing to export: the session has no prefix and no closed segment yet")
    # a memory entry has no token of its own: the transcript's first one (the BOS) stands in its place
    token_ids = dialogue.token_ids[: lengths.prefix] + dialogue.token_ids[:1] * lengths.memory
    layers = [(layer.keys[0, :, :end], layer.values[0, :, :end]) for layer in cache.layers]
    open_ids = dialogue.token_ids[lengths.closed :]
    return partial(
        write_export, base=model.fingerprint(), token_ids=token_ids, open_ids=open_ids, layers=layers
    )


def _adapter_digest(model: SonicModel) -> str | None:
    return None if model.adapter is None else model.adapter.digest()


def _copied(model: SonicModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A cache's tensors from a file, in the model's dtype and without the file's own storage, which is to be closed."""
    return {
        name: tensor.to(model.device, model.dtype if name.endswith(_COMPUTED) else None, copy=True)
        for name, tensor in tensors.items()
        if name != "token_ids"
    }
