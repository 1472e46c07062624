"""The passes of PPO's models: sampling, log rho, the training pass, and what makes the models ready for them.

Axis letters: N queries, K responses to each, B = N K episodes of this process, b of a micro-batch, Q context tokens,
T response tokens, V vocabulary.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from trl.trainer.utils import disable_dropout_in_model

from .actor_critic import ActorCritic, ActorCriticOutput, as_read, response_logits, value_network
from .compiled_sampling import CompiledSteps
from .fast_layers import use_fast_layers
from .functional import token_logprobs, token_logprobs_and_entropy
from .kv_cache import cache_argument
from .ppo_config import ZieglerPPOConfig
from .ppo_sharding import PolicyInShards
from .prefix_sharing import check_prefix_sharing
from .queries import longest_context, trimmed, with_responses
from .reward_wrapper import RewardFunction
from .rollout import Rollout
from .sampling import Samples, sample
from .sharding import reshard
from .tasks import BoundTask


class ReferenceStep:
    """A model without a value function as an [`ActorCritic`] that is sampled or read: its values are 0."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy, self.config, self._cache_name = policy, policy.config, cache_argument(policy)

    def step(self, inputs: dict[str, torch.Tensor], keep: int, cache: Any = None) -> ActorCriticOutput:
        """As [`ActorCritic.step`], with values of 0."""
        given = {**as_read(self.policy, inputs), "use_cache": True, self._cache_name: cache}
        out = self.policy(**given, logits_to_keep=keep)
        return ActorCriticOutput(out.logits, torch.zeros_like(out.logits[..., 0]), out[self._cache_name])

    def policy_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int, samples: int = 1
    ) -> torch.Tensor:
        """As [`ActorCritic.policy_logits`]."""
        return response_logits(self.policy, input_ids, attention_mask, response_length, samples)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode (gradient checkpointing would switch its cache off), then as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class ModelPasses(PolicyInShards):
    """The part of `ZieglerPPOTrainer` that runs policy, reference and value network.

    Expects the attributes declared here.
    """

    task: BoundTask
    ref_model: PreTrainedModel | None
    _reference_is_copy: bool
    _compiled: CompiledSteps | None

    def _other_networks(
        self,
        args: ZieglerPPOConfig,
        policy: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        value_model: PreTrainedModel | None,
        rewards: list[RewardFunction],
    ) -> tuple[PreTrainedModel | None, PreTrainedModel | None]:
        """Reference and value network, where they are networks of their own; all get ready for use, the policy too."""
        if value_model is None and args.value_init == "reward":
            value_model = value_network(rewards[0], policy)
        if args.num_samples_per_query > 1 and args.shared_prefix:
            for network in filter(None, (policy, ref_model, value_model)):
                check_prefix_sharing(network)
        self._reference_is_copy = ref_model is None
        if ref_model is None and not is_peft_model(policy):
            ref_model = copy.deepcopy(policy)
        for module in (policy, ref_model, value_model, *rewards):
            if isinstance(module, torch.nn.Module):
                disable_dropout_in_model(module)
                use_fast_layers(module)
        return ref_model, value_model

    def _compiled_steps(self, queries: Dataset | IterableDataset) -> CompiledSteps | None:
        if self.args.cache_implementation != "static":
            return None
        return CompiledSteps(self.model, longest=longest_context(queries, self.task), sharded=self.is_fsdp_enabled)

    def _sample(self, batch: dict[str, Any], generator: torch.Generator, count: int) -> Samples:
        """Responses with old log-probabilities and values, `local_rollout_forward_batch_size` rows at a time."""
        model = self._actor_critic
        parts = []
        for ids, mask in self._chunks(batch["input_ids"], batch["attention_mask"], samples=count):
            part = sample(
                model, ids, mask, generator=generator, samples_per_query=count, compiled=self._compiled,
                any_process=self._any_process, **self.task.sampling,
            )  # fmt: skip
            parts.append(self._as_trained(model, ids, mask, part))
        return Samples(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def _as_trained(self, model: ActorCritic, ids: torch.Tensor, mask: torch.Tensor, samples: Samples) -> Samples:
        """`samples` with what the cached pass could not give: it rounds otherwise than the training pass in bfloat16,
        and a value network keeps no cache."""
        if not self._lower_precision and model.value_model is None:
            return samples
        inputs = self._training_inputs(ids, mask, samples.responses)
        if not self._lower_precision:
            return samples._replace(values=model.network_values(*inputs).float())
        out = model(*inputs)
        logprobs = token_logprobs(out.logits, samples.responses, temperature=self.task.task.temperature)
        return Samples(samples.responses, logprobs, out.values.float())

    @property
    def _lower_precision(self) -> bool:
        """Whether passes compute in fewer bits than float32."""
        return self.accelerator.mixed_precision != "no" or self._actor_critic.policy.dtype != torch.float32

    def _reference_logprobs(self, batch: dict[str, Any], responses: torch.Tensor) -> torch.Tensor:
        """`[B, T]` log rho of the responses."""
        responses = responses.unflatten(0, (len(batch["input_ids"]), -1))  # [N, K, T]
        contexts = batch["input_ids"], batch["attention_mask"], responses
        parts = []
        with self._reference() as reference:
            for ids, mask, group in self._chunks(*contexts, samples=responses.shape[1]):
                part = group.flatten(0, 1)
                logits = reference.policy_logits(*self._training_inputs(ids, mask, part))
                parts.append(token_logprobs(logits, part, temperature=self.task.task.temperature))
        return torch.cat(parts)

    @contextlib.contextmanager
    def _reference(self) -> Iterator[ReferenceStep | ActorCritic]:
        """The reference: its own model, a named adapter of the policy, or the policy with its adapters off."""
        if self.ref_model is not None:
            yield ReferenceStep(self.ref_model)
            return
        model = self._actor_critic
        reshard(model)  # a change of adapters sets `requires_grad`
        if self.args.ref_adapter_name is not None:
            model.policy.set_adapter(self.args.ref_adapter_name)
            yield model
            reshard(model)
            model.policy.set_adapter(self.args.model_adapter_name or "default")
        else:
            with model.policy.disable_adapter():
                yield model
                reshard(model)

    def _evaluate_tokens(self, model, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and values `[b, T]` of a micro-batch under the policy being trained."""
        out = model(*self._training_inputs(rollout.context_ids, rollout.context_mask, rollout.responses))
        logprobs, entropy = token_logprobs_and_entropy(
            out.logits, rollout.responses, temperature=self.task.task.temperature
        )
        return logprobs, entropy, out.values.float()

    def _training_inputs(
        self, context_ids: torch.Tensor, context_mask: torch.Tensor, responses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Arguments of `ActorCritic.forward`; without `shared_prefix` each response gets a context of its own."""
        samples = len(responses) // len(context_ids)
        if samples > 1 and not self.args.shared_prefix:
            context_ids, context_mask = (x.repeat_interleave(samples, 0) for x in (context_ids, context_mask))
            samples = 1
        return *with_responses(context_ids, context_mask, responses), responses.shape[1], samples

    def _chunks(self, *tensors: torch.Tensor, samples: int = 1) -> Iterator[tuple[torch.Tensor, ...]]:
        """Contexts `[N, Q]`, their mask and more `[N, ...]` in parts, without the padding that a part has in common.

        The `samples` responses to each row of a part fit one forward pass of a rollout.
        """
        rows = max(1, self.args.local_rollout_forward_batch_size // samples)
        for ids, mask, *more in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            yield *trimmed(ids, mask), *more

    def _frozen(self, model: Any) -> Any:
        """A model moved to this process's device and put in evaluation mode; anything else as it is."""
        return model.to(self.args.device).eval() if isinstance(model, torch.nn.Module) else model
