"""GPT-2's activation as one operation."""

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace each `NewGELUActivation` of a model by torch's kernel of the same formula, in place.

    transformers writes GPT-2's tanh approximation of GELU out as eight operations, each a pass over the widest
    activations of the model, four of which the backward pass keeps. Outputs differ by rounding (1e-6); weights and
    configuration, and so what is saved, stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
