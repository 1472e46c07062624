"""Two layers of language models, computed with fewer passes; the same functions up to rounding.

Axis letters: N rows, H hidden, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

WIDE = 8192
"""Outputs from which on a linear layer is computed in parts of as many."""
FEW = 128
"""Rows up to which the product is made with the weight on the left."""


def use_fast_layers(model: nn.Module) -> None:
    """Replace in place what is known to be slow; weights and configuration, and so what is saved, stay as they are.

    - GPT-2's activation (`NewGELUActivation`) by torch's kernel of the same formula: transformers writes the tanh
      approximation of GELU out as eight operations, each a pass over the widest activations of the model, four of
      which the backward pass keeps.
    - The language model's head by [`WideLinear`], if it is a plain linear layer of `WIDE` outputs or more.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel | PeftModel) else None
    if type(head) is nn.Linear and head.out_features >= WIDE:
        head.__class__ = WideLinear


class WideLinear(nn.Linear):
    """`nn.Linear` for many outputs in float32 on a CPU, where one product `[N, H] x [H, V]` runs at half of its rate.

    With few rows the weight stands on the left; with many the outputs are computed in parts. Anything else (another
    device or type, autocast) is `nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., H]` to `[..., V]`."""
        plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if not plain or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        rows = _WideProduct.apply(input.reshape(-1, input.shape[-1]), self.weight)
        outputs = rows.view(*input.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


class _WideProduct(torch.autograd.Function):
    """`rows [N, H]` times the transpose of `weight [V, H]`; only the forward pass differs from torch's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        if len(rows) <= FEW:
            return (weight @ rows.t()).t().contiguous()
        outputs = rows.new_empty(len(rows), len(weight))
        for start in range(0, len(weight), WIDE):
            outputs[:, start : start + WIDE] = F.linear(rows, weight[start : start + WIDE])
        return outputs

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        return (
            slope @ weight if ctx.needs_input_grad[0] else None,
            slope.t() @ rows if ctx.needs_input_grad[1] else None,
        )
