"""A model in shards (FSDP 2): what has to be done in step by all processes, and its weights as a whole.

Every process holds a part of each parameter, a `DTensor`. The parts are put together for a forward pass, which all
processes must therefore make together and equally often; between passes there are only parts.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the model, which it changes in place."""
    return isinstance(model, FSDPModule)


def gather_in(model: nn.Module, methods: Sequence[str]) -> None:
    """Put the parameters together in these methods too, as in `forward`. Nothing happens to a model that is whole.

    Calling it again changes nothing.
    """
    for name in methods:
        if name not in vars(model):  # where torch puts the wrapped method
            register_fsdp_forward_method(model, name)


def reshard(model: nn.Module) -> None:
    """Let go of whole parameters that a forward pass has left behind, as that of an outermost module does.

    Needed before `requires_grad` of a parameter is set: outside a pass the parts carry it, and a whole parameter that
    is still around would take the change in their place and lose it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def keep_gradients_local(model: nn.Module) -> None:
    """From here on leave each process's whole gradients on the whole parameters, neither averaged nor in parts."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    model.set_reshard_after_backward(False)


def any_process(here: bool, device: torch.device) -> bool:
    """Whether it is so in any process; all of them must ask."""
    there = torch.tensor(float(here), device=device)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    return bool(there)


def from_all_processes(names: Sequence[str], device: torch.device) -> list[str]:
    """The names that some process gives, sorted; all of them must ask. Cheap where none has any."""
    if not any_process(bool(names), device):
        return []
    gathered: list[Sequence[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, list(names))
    return sorted({name for part in gathered for name in part})


def has_parts(model: nn.Module) -> bool:
    """Whether some parameter is in shards, as those of a part of a sharded model are."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor in shards; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def tied_as_in(model: nn.Module, gathered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gathered state dict of a model, with one tensor again where several names are one parameter's.

    Gathering makes a copy for each name, and what saves a model knows tied embeddings by their being one tensor.
    """
    first: dict[nn.Parameter, str] = {}
    names = {name: first.setdefault(p, name) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: gathered[names.get(name, name)] for name in gathered}


def in_parts_like(whole: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict, each cut as the one of the same name in `current`; whole where that is whole."""
    return {name: _like(tensor, current[name]) for name, tensor in whole.items()}


def _like(tensor: Tensor, current: Tensor) -> Tensor:
    if not isinstance(current, DTensor):
        return tensor
    return distribute_tensor(tensor.to(current.device), current.device_mesh, current.placements)
