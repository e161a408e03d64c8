"""Weights in the layout of a CPU's matrix units (oneDNN): a decode step reads them once, in order.

PyTorch's own product of one row and a matrix is slow on CPUs, most of all in bfloat16. The packed weights are a second
copy, and belong to a twin: the base keeps its own. Sums are in another order than the base's: logits are equal as far
as the dtype is exact, not bit for bit.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sonic_kv.errors import ConfigError


class PackedLinear(nn.Module):
    """A linear layer that reads packed weights; where gradients are wanted, the layer that it was made of.

    Args:
        linear: a layer on a CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            found: Tensor = self.linear(rows)
        else:
            found = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.linear.bias, "none", [], "")
        return found


def pack(*twins: PreTrainedModel) -> None:
    """Exchange the linear layers of twins of one base for packed ones, which they share.

    Raises:
        ConfigError: the processor cannot multiply packed weights of this dtype, or the model is not on a CPU.
    """
    supported = {
        torch.float32: torch.backends.mkldnn.is_available(),
        torch.bfloat16: torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    }
    first = twins[0]
    if first.device.type != "cpu" or not supported.get(first.dtype, False):
        raise ConfigError(
            f"packed weights need a CPU that multiplies {str(first.dtype).removeprefix('torch.')}, not "
            f"{first.device}: leave packed out"
        )
    for same in zip(*(list(twin.modules()) for twin in twins), strict=True):
        for name, child in same[0].named_children():
            if type(child) is nn.Linear:
                packed = PackedLinear(child)
                for module in same:
                    setattr(module, name, packed)
