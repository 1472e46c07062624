"""Log-probability of given tokens and entropy under a tempered softmax, some rows at a time.

Written as single operations over `[B, T, V]`, log-softmax, entropy and their gradient are a dozen passes over tensors
of hundreds of megabytes, which at small widths cost as much as the model. Here each chunk of rows stays in the
processor's cache meanwhile, and nothing but the logits is kept for the backward pass, whose only large tensor is the
gradient that it returns.

Axis letters: N rows (any leading axes, flattened), V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits of a chunk: 2 MiB of float32 stay in a core's cache; a GPU wants few large kernels."""


class TokenLogprobs(torch.autograd.Function):
    """`(log softmax(logits / temperature)[token], entropy)`, both `[N]`; the entropy has no gradient.

    Args of `apply`: `logits [N, V]` floating, `tokens [N]` int64, `temperature` > 0, and whether the entropy is wanted
    (zeros otherwise). Results are float64 for float64 logits, else float32; arithmetic likewise.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        """Row by row; see the class."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logprobs, entropies, normalisers = torch.zeros(3, len(logits), dtype=dtype, device=logits.device)
        for part in chunks(logits):
            tempered = logits[part].to(dtype) / temperature
            largest = tempered.amax(-1, keepdim=True)
            weights = (tempered - largest).exp_()
            total = weights.sum(-1)
            normalisers[part] = largest[:, 0] + total.log()
            logprobs[part] = tempered.gather(-1, tokens[part, None])[:, 0] - normalisers[part]
            if entropy:
                # A banned token gives 0 * -inf, which nansum drops; a real NaN or +inf still shows in the normaliser.
                entropies[part] = normalisers[part] - weights.mul_(tempered).nansum(-1) / total
        ctx.save_for_backward(logits, tokens, normalisers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """(one-hot(token) - softmax) / temperature, times the slope of each row."""
        logits, tokens, normalisers = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        slope = (slope / ctx.temperature)[:, None]
        for part in chunks(logits):
            tempered = logits[part].to(slope.dtype) / ctx.temperature
            rows = tempered.sub_(normalisers[part, None]).exp_().mul_(-slope[part])
            gradient[part] = rows.scatter_add_(-1, tokens[part, None], slope[part])
        return gradient, None, None, None


def chunks(logits: Tensor) -> list[slice]:
    """Slices over the rows of `logits [N, V]` with `CHUNK_ELEMENTS` or a row each."""
    most = CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS["cuda"])
    size = max(1, most // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]
