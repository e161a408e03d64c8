"""The registered attention function, and the twin of a base that uses it.

transformers chooses a model's attention by a setting of its config, which all who use the model share. It is
left alone here: a *twin* has modules and a config of its own and the base's weights, so that forwards with a
reader run beside the base's own, in any number of threads, and cost no memory.
"""

import copy
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel

from sonic_kv.errors import UnsupportedModelError
from sonic_kv.model.reader import Reader
from sonic_kv.text import reason

NAME = "sonic_kv"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    *,
    scaling: float,
    reader: Reader,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it; the reader comes through the forward's arguments.

    Args:
        query: (B, H, T, D)
        key, value: (B, G, S, D)

    Returns:
        (B, T, H, D), and no weights
    """
    if s_aux is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} has learned attention sinks, which sonic-kv cannot compute"
        )
    layer = cast(int, module.layer_idx)
    output = reader.read(layer, query, key, value, scale=scaling, softcap=softcap)
    return output.transpose(1, 2).contiguous(), None


def twin(base: PreTrainedModel, attention: str = NAME) -> PreTrainedModel:
    """A second model of the base's weights that has another attention.

    Its modules and its config are copies; tensors are the base's own, and so are the tables in which modules hold
    parameters, buffers and hooks: what is moved to another device, sharded or hooked there is so here.

    Args:
        attention: an attention implementation of transformers; the registered one needs a reader in every forward.

    Raises:
        UnsupportedModelError: something in the base cannot be copied.
    """
    AttentionInterface.register(NAME, _attend)
    tables = (table for module in base.modules() for table in _tables(module))
    memo = {id(shared): shared for shared in (*tables, *base.parameters(), *base.buffers())}
    try:
        with _SharedTensors():
            other = copy.deepcopy(base, memo)
    except Exception as error:  # anything may hang on a model
        raise UnsupportedModelError(f"{type(base).__name__} cannot be copied: {reason(error)}") from error
    other.config.get_text_config()._attn_implementation = attention
    for module in other.modules():
        # a compiled forward is the base's; __dict__, as the class has one, too
        if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            del module.forward
    return other


def _tables(module: nn.Module) -> Iterable[dict[str, Any]]:
    """Where a module holds its parameters, buffers and hooks."""
    return (
        table
        for name, table in vars(module).items()
        if isinstance(table, dict) and (name in ("_parameters", "_buffers") or "_hooks" in name)
    )


class _SharedTensors(TorchFunctionMode):
    """Deep copies have the same tensors, wherever they are: in quantised weights' states, in offloaded layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))
