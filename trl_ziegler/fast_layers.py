"""Two layers of language models, computed with fewer passes or less rounding; the same functions otherwise.

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
"""Outputs from which on a head is computed in parts of as many."""
FEW = 128
"""Rows up to which the product is made with the weight on the left."""


def use_fast_layers(model: nn.Module) -> None:
    """Replace in place what is slow or rounds; weights and configuration, and so what is saved, stay as they are.

    - GPT-2's activation (`NewGELUActivation`) by torch's kernel of the same formula: transformers writes the tanh
      approximation of GELU out as eight operations, each a pass over the widest activations of the model, four of
      which the backward pass keeps.
    - The language model's head by [`LogitsLinear`], if it is a plain linear layer.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel | PeftModel) else None
    if type(head) is nn.Linear:
        head.__class__ = LogitsLinear


class LogitsLinear(nn.Linear):
    """`nn.Linear` whose outputs are float32 where its weight is, whatever the autocast state.

    Logits of real models lie around -100, where neighbours in bfloat16 are 0.5 nats apart: with logits rounded to it,
    the padding of a batch moves the log-probability of a token by up to 1. A head runs at response positions only.

    On a CPU, where one product `[N, H] x [H, V]` runs at half of its rate, many outputs are computed in parts, and
    with few rows the weight stands on the left.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., H]` to `[..., V]`."""
        device = input.device.type
        lower = input.dtype != torch.float32 and not torch.is_autocast_enabled(device)
        if lower or self.weight.dtype != torch.float32:
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            input = input.float()
            if device != "cpu" or self.out_features < WIDE:
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
