"""The coefficient beta of the KL penalty: fixed, or steered so that the KL per response meets a target.

Source: openai/lm-human-preferences, train_policy.py: FixedKLController, AdaptiveKLController; Ziegler et al. 2019,
section 2.2.
"""

import math

MAX_ERROR = 0.2  # one update reacts to a KL up to 20 % off its target and no more


class FixedKLController:
    """A constant beta, with the interface of `AdaptiveKLController`.

    Args:
        kl_coef: beta >= 0, in units of reward per nat.

    Attributes:
        value: the beta to use for the next update.
    """

    def __init__(self, kl_coef: float) -> None:
        if not (math.isfinite(kl_coef) and kl_coef >= 0):
            raise ValueError(f"`kl_coef` must be a finite number >= 0, got {kl_coef}.")
        self.value = float(kl_coef)

    def update(self, kl: float, n_episodes: int) -> None:
        """Leave beta as it is; arguments and errors are those of `AdaptiveKLController.update`."""
        _require_measurement(kl, n_episodes)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs to continue: the current beta."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continue from a `state_dict()`; a value that is not a finite number >= 0 raises `ValueError`."""
        FixedKLController.__init__(self, state_dict["value"])


class AdaptiveKLController(FixedKLController):
    """Proportional control of beta: beta *= 1 + clip(KL / target - 1, -0.2, 0.2) * n_episodes / horizon.

    Args:
        kl_coef: beta of the first update, >= 0, in units of reward per nat.
        target: KL to hold, > 0, in nats per response.
        horizon: > 0, in episodes. The paper's gain K_beta = 0.1 is about 1,024 episodes per update over 10,000.

    Attributes:
        value: the beta to use for the next update.
    """

    def __init__(self, kl_coef: float, target: float, horizon: float = 10_000) -> None:
        super().__init__(kl_coef)
        for name, number in (("target", target), ("horizon", horizon)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"`{name}` must be a finite number > 0, got {number}.")
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, n_episodes: int) -> None:
        """Move beta after a rollout.

        Args:
            kl: mean over the rollout, and over all ranks, of the sum over t of log pi - log rho, in nats per response.
                As an estimate it may be negative.
            n_episodes: responses in the rollout over all ranks (not tokens), >= 1.

        Raises:
            ValueError: if `kl` is NaN or infinite, or if `n_episodes` is < 1 or so large that beta could reach 0.
        """
        _require_measurement(kl, n_episodes)
        gain = n_episodes / self.horizon
        if gain * MAX_ERROR >= 1:
            raise ValueError(
                f"`horizon` must be above {n_episodes * MAX_ERROR:g} for {n_episodes} episodes per update, or beta "
                f"could drop to 0 or below; got {self.horizon}."
            )
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.value *= 1 + error * gain


def _require_measurement(kl: float, n_episodes: int) -> None:
    if not math.isfinite(kl):
        raise ValueError(f"`kl` must be finite to steer beta, got {kl}; the policy or its reference has diverged.")
    if n_episodes < 1:
        raise ValueError(f"`n_episodes` must be at least 1, got {n_episodes}.")
