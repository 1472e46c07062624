"""What `ZieglerPPOTrainer` does otherwise where the policy is in shards (FSDP 2) and not whole on each process."""

import contextlib

from transformers import PreTrainedModel, Trainer

from .actor_critic import ActorCritic
from .sharding import any_process, from_all_processes, gather_in, is_sharded, keep_gradients_local


class PolicyInShards(Trainer):
    """The part of `ZieglerPPOTrainer` that knows where the policy is; whole policies pay nothing for it.

    Overridden on `Trainer`: `save_model`.
    """

    @property
    def _actor_critic(self) -> ActorCritic:
        """Policy and value function, not wrapped; in shards all processes have to call its methods together.

        Raises `RuntimeError` under FSDP before `train`, which is what cuts the model.
        """
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled:
            if not is_sharded(model):
                raise RuntimeError(
                    "The model is put in shards by `train` and was asked for before; call `train` first, and set "
                    "`eval_on_start` to evaluate the policy as it was given."
                )
            gather_in(model, ActorCritic.FORWARD_METHODS)
        return model

    def _autocast(self) -> contextlib.AbstractContextManager:
        """Around passes of policy and reference: the precision of training's."""
        # Shards are put together in the lower precision, and accelerate adds no autocast to that.
        return contextlib.nullcontext() if self.is_fsdp_enabled else self.accelerator.autocast()

    def _like_shards(self, reference: PreTrainedModel | None) -> PreTrainedModel | None:
        """The reference with its parameters in the type in which the policy's are put together."""
        precision = self.accelerator.state.fsdp_plugin.mixed_precision_policy if self.is_fsdp_enabled else None
        if reference is not None and precision is not None and precision.param_dtype is not None:
            # Not `reference.to`: buffers, such as rotary frequencies, stay as they are in the policy, too.
            for parameter in reference.parameters():
                parameter.data = parameter.data.to(precision.param_dtype)
        return reference

    def _any_process(self, here: bool) -> bool:
        """Whether it is so in any process that shares this policy's shards; `here` where the policy is whole."""
        return any_process(here, self.args.device) if self.is_fsdp_enabled else here

    def _names_of_all(self, names: list[str]) -> list[str]:
        """The names that any process which shares this policy's shards gives."""
        return from_all_processes(names, self.args.device) if self.is_fsdp_enabled else names

    def _keep_gradients_local(self) -> None:
        """From here on gradients are this process's own; training cannot go on."""
        if self.is_fsdp_enabled:
            keep_gradients_local(self._actor_critic)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`, also where accelerate's own files are the shards (`SHARDED_STATE_DICT`)."""
        if self.is_fsdp_enabled and "FULL" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        Trainer.save_model(self, output_dir, _internal_call)
