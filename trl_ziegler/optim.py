"""Adam as TensorFlow 1 wrote it, the optimiser of the reference code."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT
from transformers import TrainingArguments


class TFAdam(torch.optim.Optimizer):
    """Adam whose epsilon is added outside the bias correction.

    With gradient g at step k: m = b1*m + (1 - b1)*g, v = b2*v + (1 - b2)*g^2, and

        theta -= lr * sqrt(1 - b2^k) / (1 - b1^k) * m / (sqrt(v) + eps).

    `torch.optim.Adam` adds eps to the corrected sqrt(v) instead, which at the first step is like an eps 31.6 times
    smaller here: small gradients then move the weights much further. There is no weight decay.

    Args:
        params: parameters or parameter groups. A group may carry `weight_decay: 0`, as those of `transformers.Trainer`
            do.
        lr: learning rate, >= 0. It has no default because `Trainer` does not pass its own in
            `optimizer_cls_and_kwargs=(TFAdam, {"lr": ...})`.
        betas: decay rates of the two moments, in [0, 1).
        eps: > 0.

    Raises:
        ValueError: if an argument is out of range or a group asks for weight decay.

    Source: openai/lm-human-preferences, utils/core.py:minimize, with `tf.train.AdamOptimizer`.
    """

    def __init__(
        self, params: ParamsT, lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, after checking its hyper-parameters (see the class)."""
        _require_hyperparameters({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(params, group)
        return loss

    def _step_group(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        states = [self._state_of(p) for p in params]
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] += 1
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, group["eps"])
        steps = [state["step"].item() for state in states]  # parameters may have joined at different steps
        step_sizes = [-group["lr"] * math.sqrt(1 - beta2**k) / (1 - beta1**k) for k in steps]
        torch._foreach_addcdiv_(params, exp_avgs, denominators, step_sizes)

    def _state_of(self, param: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameter's state, with the keys of `torch.optim.Adam`."""
        state: dict[str, torch.Tensor] = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)  # on the CPU, so that reading it does not wait for the device
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def _require_hyperparameters(group: dict[str, Any]) -> None:
    if not group["lr"] >= 0:
        raise ValueError(f"`lr` must be >= 0, got {group['lr']}.")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"`betas` must lie in [0, 1), got {group['betas']}.")
    if not group["eps"] > 0:
        raise ValueError(f"`eps` must be > 0, got {group['eps']}.")
    if group.get("weight_decay", 0) != 0:
        raise ValueError(
            f"`weight_decay` must be 0 with TFAdam, got {group['weight_decay']}; torch.optim.AdamW decays weights."
        )


def check_tf_adam(args: TrainingArguments) -> None:
    """`ValueError` where a setting of `Trainer`'s optimiser that [`TFAdam`] does not have is not the default."""
    for name in ("adam_epsilon", "weight_decay"):
        if getattr(args, name) != type(args).__dataclass_fields__[name].default:
            raise ValueError(
                f"`{name}` is {getattr(args, name)}, which `optimizer='tf_adam'` does not use (epsilon 1e-5, no "
                "decay); leave it out, or pass an optimizer of your own to the trainer."
            )


def tf_adam(
    args: TrainingArguments, optimizer_cls_and_kwargs: Any | None, optimizers: Any | None
) -> tuple[type[TFAdam], dict[str, Any]]:
    """[`TFAdam`] with the configured rate and betas, as `Trainer` takes it; `ValueError` if another is given too."""
    if optimizer_cls_and_kwargs is not None or (optimizers and optimizers[0] is not None):
        raise ValueError("`optimizer='tf_adam'` and an optimizer for the trainer are both given; give one of them.")
    return TFAdam, {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
