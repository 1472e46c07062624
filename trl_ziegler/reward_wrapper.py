"""From a response to its per-token reward: score, cut, penalty, KL. The one place to change the reward rule.

R(x, y) = r(x, y) - beta log(pi(y|x) / rho(y|x)) (Ziegler et al. 2019, section 2; `openai/lm-human-preferences`,
`train_policy.py:make_score_fn, compute_rewards`). Axis letters: B responses, T response tokens, F reward functions.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .functional import kl_entropy_rewards
from .kl_control import AdaptiveKLController, FixedKLController
from .preference_data import tokenize_prompt_completion
from .reward_model import score_token_ids
from .tasks import BoundTask

RewardFunction: TypeAlias = PreTrainedModel | Callable[..., list[float | None]]


class Scored(NamedTuple):
    """What the reward functions said of a batch of responses.

    `scores [B]`: what PPO optimises, after cut, weights and penalty. `raw [B]`: without the penalty. `parts [B, F]`:
    each function's own score, NaN where it gave `None`. `lengths [B]`: tokens up to the end. `valid [B]`: ended by the
    rule.
    """

    scores: torch.Tensor
    raw: torch.Tensor
    parts: torch.Tensor
    lengths: torch.Tensor
    valid: torch.Tensor


class ShapedRewards(NamedTuple):
    """Per-token rewards `[B, T]` with their parts: `rewards` = `kl_reward` + the score at the last (masked) token;
    `entropy_bonus` = -beta log pi is a component of `kl_reward`, not a further term. `mask [B, T]`: trained tokens."""

    rewards: torch.Tensor
    kl_reward: torch.Tensor
    entropy_bonus: torch.Tensor
    mask: torch.Tensor


class KLEntropyReward:
    """Turns responses into PPO's rewards: score -> cut -> penalty -> per-token R.

    Args:
        functions: Reward models (read the raw query and the cut response as ids) and callables
            `f(prompts, completions, **columns) -> list[float | None]` (read text; messages for chat prompts).
        weights: One weight per function; a function of weight 0 is computed and logged only.
        task: Cut and penalty rules.
        tokenizer: Decodes what callables read.
        controller: Holds beta.
        processing_classes: For each function `None`, or the tokenizer of a reward model that does not share the
            policy's; that model then reads re-encoded text.
        batch_size: Rows per forward pass of a reward model.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float],
        task: BoundTask,
        tokenizer: PreTrainedTokenizerBase,
        controller: FixedKLController | AdaptiveKLController,
        *,
        processing_classes: Sequence[PreTrainedTokenizerBase | None] | None = None,
        batch_size: int = 64,
    ) -> None:
        if len(weights) != len(functions):
            raise ValueError(
                f"`reward_weights` has {len(weights)} values for {len(functions)} reward functions; give one for each."
            )
        if not any(weights):
            raise ValueError("All `reward_weights` are 0, so nothing but the KL would count; give one that is not.")
        self.functions = list(functions)
        self.weights = [float(weight) for weight in weights]
        self.task = task
        self.tokenizer = tokenizer
        self.controller = controller
        self.processing_classes = list(processing_classes or [None] * len(functions))
        self.batch_size = batch_size
        self.names = numbered([function_name(function) for function in self.functions])

    def score(self, queries: list[list[int]], responses: torch.Tensor, columns: dict[str, list]) -> Scored:
        """Score responses.

        Args:
            queries: B raw queries (without prefix, suffix and padding).
            responses: `[B, T]` ids as sampled.
            columns: Columns of the dataset, B values each; they reach callables as keywords.

        Raises:
            ValueError: a score that is not finite, with the prompt and response it belongs to.
        """
        lengths, valid = self.task.cut(responses)
        cut = [row[:n] for row, n in zip(responses.tolist(), lengths.tolist(), strict=True)]
        parts = torch.stack([self._part(i, queries, cut, columns) for i in range(len(self.functions))], 1)
        self._refuse_non_finite(parts, queries, cut)
        weights = torch.tensor(self.weights)
        raw = (parts.nan_to_num() * weights).sum(1).to(responses.device)
        return Scored(self.task.penalize(raw, valid), raw, parts, lengths, valid)

    def shape(self, scored: Scored, logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> ShapedRewards:
        """Per-token rewards of the sampled tokens.

        Args:
            scored: What `score` returned.
            logprobs: `[B, T]` log pi of the sampling policy, nats.
            ref_logprobs: `[B, T]` log rho, nats.
        """
        mask = self.task.mask(scored.lengths)
        shaped = kl_entropy_rewards(scored.scores, logprobs, ref_logprobs, self.controller.value, mask=mask)
        return ShapedRewards(*shaped, mask)

    def _part(self, i: int, queries: list[list[int]], cut: list[list[int]], columns: dict[str, list]) -> torch.Tensor:
        function, own_tokenizer = self.functions[i], self.processing_classes[i]
        if isinstance(function, torch.nn.Module):
            if own_tokenizer is not None:
                queries, cut = self._reencode(queries, cut, columns, own_tokenizer)
            return score_token_ids(function, queries, cut, batch_size=self.batch_size)
        prompts, completions, columns = self._as_text(queries, cut, columns)
        check_call(function, self.names[i], columns)
        return as_scores(function(prompts, completions, **columns), self.names[i], len(cut))

    def _as_text(
        self, queries: list[list[int]], cut: list[list[int]], columns: dict[str, list]
    ) -> tuple[list, list, dict[str, list]]:
        texts = self.tokenizer.batch_decode(cut, skip_special_tokens=True)
        columns = dict(columns)
        prompts = columns.pop("prompt", None) or self.tokenizer.batch_decode(queries, skip_special_tokens=True)
        if isinstance(prompts[0], list):
            return prompts, [[{"role": "assistant", "content": text}] for text in texts], columns
        return prompts, texts, columns

    def _reencode(
        self,
        queries: list[list[int]],
        cut: list[list[int]],
        columns: dict[str, list],
        tokenizer: PreTrainedTokenizerBase,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """What the trainer of reward models gives a model with this tokenizer to read."""
        prompts, completions, _ = self._as_text(queries, cut, columns)
        pairs = zip(prompts, completions, strict=True)
        encoded = [tokenize_prompt_completion(tokenizer, prompt, completion) for prompt, completion in pairs]
        return [prompt for prompt, _ in encoded], [completion for _, completion in encoded]

    def _refuse_non_finite(self, parts: torch.Tensor, queries: list[list[int]], cut: list[list[int]]) -> None:
        callables = torch.tensor([not isinstance(function, torch.nn.Module) for function in self.functions])
        bad = parts.isinf() | (parts.isnan() & ~callables)
        counted = torch.tensor(self.weights) != 0  # what is only logged is no score
        unscored = parts[:, counted].isnan().all(1)
        if not bad.any() and not unscored.any():
            return
        row = int((bad.any(1) | unscored).nonzero()[0])
        column = int(bad[row].nonzero()[0]) if bad[row].any() else 0
        raise ValueError(
            f"Reward function '{self.names[column]}' gave no finite score for the prompt "
            f"{self.tokenizer.decode(queries[row])!r} and the response {self.tokenizer.decode(cut[row])!r}; "
            "the run stops before the weights change."
        )


def check_call(function: Callable, name: str, columns: Mapping[str, Any], data: str = "the data") -> None:
    """`ValueError` for a function that cannot be called as `f(prompts, completions, **columns)` of `data`."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C may not tell; the call will
        return
    taken = sorted({"prompts", "completions"} & set(columns))
    if taken:
        raise ValueError(
            f"A column of {data} is called `{taken[0]}`, and a reward function gets its texts by that name; rename it."
        )
    try:
        signature.bind([], [], **columns)
    except TypeError as error:
        raise ValueError(
            f"Reward function '{name}' cannot be called with prompts, completions and the columns {sorted(columns)} "
            f"of {data} ({error}); define it as `def {name}(prompts, completions, **columns)`."
        ) from None


def as_scores(values: Any, name: str, count: int) -> torch.Tensor:
    """`[count]` of what a reward function returned: NaN for `None`, infinity for a NaN of its own.

    Raises `ValueError` for anything but `count` numbers or `None`s.
    """
    try:
        found = len(values)
        ordered = not isinstance(values, (Mapping, Set))
    except TypeError:
        ordered = False
    if not ordered:
        raise ValueError(
            f"Reward function '{name}' returned {values!r}; return a list with one float (or None) per completion."
        )
    if found != count:
        raise ValueError(
            f"Reward function '{name}' returned {found} scores for {count} completions; return one float (or None) "
            "for each."
        )
    try:
        floats = [math.nan if value is None else math.inf if math.isnan(value) else float(value) for value in values]
    except TypeError:
        raise ValueError(
            f"Reward function '{name}' returned {values!r}; return floats (or None) and nothing else."
        ) from None
    return torch.tensor(floats)


def function_name(function: RewardFunction) -> str:
    """The name a reward function is logged under: a model's last path component, a callable's name."""
    if isinstance(function, PreTrainedModel):
        return function.config._name_or_path.rstrip("/").split("/")[-1] or type(function).__name__
    return getattr(function, "__name__", type(function).__name__)


def numbered(names: Sequence[str]) -> list[str]:
    """The names, from its second occurrence on each with its number.

    >>> numbered(["model", "length", "model"])
    ['model', 'length', 'model-2']
    """
    return [name if names.index(name) == i else f"{name}-{names[: i + 1].count(name)}" for i, name in enumerate(names)]
