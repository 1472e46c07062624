"""Model cards of the two trainers: TRL's, with how to load the model, what it learned from and what was measured."""

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import Trainer, TrainerState
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ._version import __version__
from .actor_critic import VALUE_HEAD_FILE, VALUE_MODEL_FOLDER
from .reward_model import REWARD_HEAD_FILE
from .reward_wrapper import KLEntropyReward
from .tasks import BoundTask

OWN_FILES = (VALUE_HEAD_FILE, VALUE_MODEL_FOLDER, REWARD_HEAD_FILE)
QUICK_START, TRAINING, VERSIONS = "## Quick start\n", "## Training procedure\n", "### Framework versions\n\n"

LOAD_POLICY = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
policy = AutoModelForCausalLM.from_pretrained("{path}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
sampling = {{"do_sample": True, "temperature": {temperature}, "top_k": 0, "max_new_tokens": {length}}}
print(tokenizer.decode(policy.generate(**inputs, **sampling)[0]))
```

With its value function, to go on training or to look at the values:

```python
{download}from trl_ziegler import ActorCritic

actor_critic = ActorCritic.from_pretrained({folder})
```
"""

LOAD_REWARD = """\
```python
from transformers import AutoTokenizer
from trl_ziegler import load_reward_model, score_token_ids

tokenizer = AutoTokenizer.from_pretrained("{path}")
reward_model = load_reward_model("{path}")
prompt, completion = tokenizer("Once upon a time"), tokenizer(" there was a garden.")
print(score_token_ids(reward_model, [prompt["input_ids"]], [completion["input_ids"]]))
```

`AutoModelForSequenceClassification` loads it too; its rewards differ from these by one constant, `reward_bias` in the
configuration.
"""


class ModelCards(Trainer):
    """TRL's `create_model_card` for a model that is loaded, and was measured, in ways TRL does not know.

    Overrides: `create_model_card`; `save_model`, so that a card lies beside each model, those of checkpoints included;
    `_save_checkpoint`, whose card in the output directory describes no model there; `_push_from_checkpoint`, which
    leaves files of ours behind; `_load_best_model`, after which the last evaluation is no longer the model's.
    """

    _best: tuple[TrainerState | None, int] = (None, 0)

    @property
    def _rows_before_best(self) -> int:
        """Rows of the log when the best model was loaded; 0 where it was not, or training has begun anew since."""
        state, rows = self._best
        return rows if state is self.state else 0

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `README.md` in the output directory: TRL's card, with our way to load, the labels' origin and results.

        Args:
            model_name: By default the last part of the hub id, or of the output directory.
            dataset_name: Hub id of the training data.
            tags: Added to the trainer's.
        """
        path = self.hub_model_id or self.args.hub_model_id or str(self.args.output_dir)
        model_name = model_name or Path(path).name
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        file = Path(self.args.output_dir, "README.md")
        card = ModelCard.load(file)
        opening, rest = card.text.split(QUICK_START)
        procedure, closing = rest.split(TRAINING)[1].split(VERSIONS)
        if "[None]" in opening:
            opening = without_base_model(opening)
        parts = [opening, QUICK_START, "\n", self._how_to_load(path), "\n", TRAINING, f"\n{procedure.strip()}\n\n"]
        parts += [f"### {title}\n\n{text}\n\n" for title, text in self._sections().items()]
        card.text = "".join([*parts, VERSIONS, f"- trl_ziegler: {__version__}\n", closing])
        card.save(file)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`, with the card of the model, as it is known now, in the same folder."""
        super().save_model(output_dir, _internal_call)
        own, folder = self.args.output_dir, output_dir or self.args.output_dir
        pushed = _internal_call and output_dir is None  # the push writes the card itself
        model = any(Path(folder, name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))
        if pushed or not model:  # but shards, which cannot be loaded as one
            return
        self.args.output_dir = folder  # where TRL writes the card
        try:
            self.create_model_card(Path(self.args.hub_model_id or own).name)
        finally:
            self.args.output_dir = own

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL's writes a card into the output directory first, which is for what goes to the hub from there.
        save = super()._save_checkpoint if self.args.push_to_hub else partial(Trainer._save_checkpoint, self)
        save(model, trial)

    def _how_to_load(self, path: str) -> str:
        raise NotImplementedError

    def _sections(self) -> dict[str, str]:
        """Title and text of what the card says of this run."""
        raise NotImplementedError

    def _evaluations(self) -> Iterator[tuple[str, dict[str, float]]]:
        """For each evaluation set its name (empty for the only one) and the metrics, without prefix, of this model."""
        history, best = self.state.log_history, self.state.best_global_step
        rows = [row for row in history[self._rows_before_best :] if is_evaluation(row)]
        if self._rows_before_best and not rows:
            rows = [row for row in history if is_evaluation(row) and row["step"] == best]
        data = self.eval_dataset
        for name in data if isinstance(data, dict) else [""]:
            prefix = f"eval_{name}_" if name else "eval_"
            own = [row for row in rows if f"{prefix}runtime" in row]
            if own:
                yield name, {key.removeprefix(prefix): value for key, value in own[-1].items()}

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        for name in OWN_FILES if self.is_world_process_zero() else ():
            source, target = Path(checkpoint_folder, name), Path(self.args.output_dir, name)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.is_file():
                shutil.copy(source, target)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best = (self.state, len(self.state.log_history))


class RewardCards(ModelCards):
    """The card of `BestOfKRewardTrainer`."""

    _counted: tuple[Dataset | None, str] = (None, "")

    def _candidates(self) -> str:
        """How many candidates a training record has: counted once, since every checkpoint writes a card."""
        if self._counted[0] is not self.train_dataset:
            counts = {len(candidates) for candidates in self.train_dataset["completion_ids"]}
            among = str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
            self._counted = (self.train_dataset, among)
        return self._counted[1]

    def _how_to_load(self, path: str) -> str:
        return LOAD_REWARD.format(path=path)

    def _sections(self) -> dict[str, str]:
        labels = [f"- Labels: {self.args.label_origin or 'their origin is not stated'}."]
        if isinstance(self.train_dataset, Dataset):
            labels.append(f"- {len(self.train_dataset)} records, each with {self._candidates()} candidates.")
        labels.append(f"- Loss: `{self.args.loss_type}`.")
        normalization = getattr(self.model.config, "reward_normalization", None)
        return {
            "Labels": "\n".join(labels),
            "Results": "\n".join([*self._results(), f"- Scale: {scale(normalization)}."]),
        }

    def _results(self) -> Iterator[str]:
        evaluations = list(self._evaluations())
        for name, metrics in evaluations:
            if "accuracy" in metrics:
                yield (
                    f"- Held-out labels{f' ({name})' if name else ''}: accuracy {metrics['accuracy']:.3f}, guessing "
                    f"{metrics['chance']:.3f}; margin {metrics['margin']:.3f}."
                )
        if not evaluations:
            yield "- It was not evaluated on held-out labels."


class PolicyCards(ModelCards):
    """The card of `ZieglerPPOTrainer`."""

    task: BoundTask
    reward: KLEntropyReward

    def _how_to_load(self, path: str) -> str:
        task, folder, download = self.task.task, f'"{path}"', ""
        if path != str(self.args.output_dir):
            folder, download = f"snapshot_download({folder})", "from huggingface_hub import snapshot_download\n"
        return LOAD_POLICY.format(
            path=path, temperature=task.temperature, length=task.response_length, folder=folder, download=download
        )

    def _sections(self) -> dict[str, str]:
        return {
            "Reward": "\n".join(self._rewards()),
            "Settings": "\n".join(self._settings()),
            "Results": "\n".join(self._results()),
        }

    def _rewards(self) -> Iterator[str]:
        reward = self.reward
        for name, weight, function in zip(reward.names, reward.weights, reward.functions, strict=True):
            kind = "a function"
            if isinstance(function, torch.nn.Module):
                origin = getattr(function.config, "label_origin", None)
                kind = f"a reward model; its labels: {origin or 'their origin is not stated'}"
            yield f"- `{name}`, weight {weight:g}{' (only logged)' if weight == 0 else ''}: {kind}."

    def _settings(self) -> Iterator[str]:
        task, controller = self.task.task, self.kl_controller
        yield f"- Responses: {task.response_length} tokens at most, sampled at temperature {task.temperature:g}."
        if task.prefix or task.suffix:
            yield f"- The policy reads {task.prefix!r} before a prompt and {task.suffix!r} after it."
        target = "fixed" if self.args.kl_target is None else f"adapted towards {self.args.kl_target:g} nats"
        yield f"- KL coefficient beta: {controller.value:.4g}, {target}."
        yield f"- Episodes: {self._update * self.plan.batch_size}."

    def _results(self) -> Iterator[str]:
        rows = [(f"held-out prompts{f' ({name})' if name else ''}", row) for name, row in self._evaluations()]
        training = next((row for row in reversed(self.state.log_history) if "objective/kl" in row), None)
        if training is not None and not self._rows_before_best:
            rows.append(("training prompts", training))
        if not rows:
            yield "Nothing was measured yet."
            return
        yield "| measured on | KL to the reference, nats per response | score | win rate against the reference |"
        yield "| --- | --- | --- | --- |"
        for name, row in rows:
            win_rate = f"{row['win_rate']:.3f}" if "win_rate" in row else "–"
            yield f"| {name} | {row['objective/kl']:.3f} | {row['objective/scores']:.3f} | {win_rate} |"


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row of the log came from `evaluate`."""
    return any(key.startswith("eval_") for key in row)


def without_base_model(opening: str) -> str:
    """TRL's first sentence for a start model that has no place on the hub, whose name it writes as None."""
    return opening.replace("[None](https://huggingface.co/None)", "a model that is not on the Hugging Face hub")


def scale(normalization: Mapping[str, Any] | None) -> str:
    """How the rewards were normalised."""
    if normalization is None:
        return "the rewards are not normalised"
    std = normalization["target_std"]
    spread = "" if std is None else f" and standard deviation {std:g}"
    return (
        f"mean {normalization['target_mean']:g}{spread} over {normalization['n_samples']} samples "
        f"(`{normalization['method']}`)"
    )
