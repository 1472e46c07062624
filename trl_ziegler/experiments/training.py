"""The trainings that every experiment makes: a start model, a reward model from labelled rows, a policy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from .._files import folder_or_hub_id
from ..checkpoints import newest_reward_checkpoint
from ..metrics import BestOfKAccuracy
from ..metrics.best_of_k import chance_of_at_most
from ..online import OnlineCollection
from ..ppo_checkpoints import newest_checkpoint
from ..ppo_config import ZieglerPPOConfig
from ..ppo_trainer import ZieglerPPOTrainer
from ..reward_model import is_normalized, load_reward_model, normalize_reward_model, score_token_ids
from ..reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer
from ..reward_wrapper import RewardFunction
from ..tasks import Task
from .cards import save_with_card
from .experiment import load_model
from .pipeline import write_json

NormalizeTo = Literal["samples", "references"]

NO_ACCIDENT = 1e-3
"""A result that guessing gives more rarely than this stops the pipeline: an online run looks at twenty reward models,
and the first of them may know little more than a guesser."""


def start_model(
    folder: Path,
    section: str,
    given: str | None,
    config: SFTConfig | None,
    world: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    rows: Callable[[PreTrainedTokenizerBase], Dataset],
) -> None:
    """Train the model that everything starts from, or point to a given one; `start.json` in `folder` says which.

    Args:
        section: What `config` was read from.
        given: Folder or hub id of one's own model, used as it is without a `config`.
        config: How it is trained; `None` for not at all.
        world: Gives the model to train and its tokenizer.
        rows: From the tokenizer to rows of `SFTTrainer`.

    Raises:
        ValueError: neither a config nor a given model.
    """
    if config is None:
        if given is None:
            raise ValueError(f"The section '{section}' is empty, but the laptop world has no trained model; fill it.")
        given = folder_or_hub_id(given)
        if PartialState().is_main_process:
            write_json(folder / "start.json", {"model": given})
        return
    model, tokenizer = world()
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows(tokenizer), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    if PartialState().is_main_process:
        write_json(folder / "start.json", {"model": None})
        write_json(folder / "log_history.json", trainer.state.log_history)


def train_reward_model(
    folder: Path,
    config: BestOfKRewardConfig,
    start: str,
    rows: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    *,
    held_out: int,
    normalize_to: NormalizeTo = "samples",
) -> None:
    """Train on labelled rows, normalise before and after, save in `folder/model`.

    Args:
        folder: Also gets `log_history.json` and, from the held-out labels, `metrics.json`.
        config: Its seed is also the fresh head's.
        start: Folder of the start model.
        rows: `prompt_ids`, `completion_ids`, `label` and, for the loss `ranking`, `ranking`; the last `held_out` of
            them are not trained on.
        samples, normalize_to: See `normalize_over`.

    Raises:
        ValueError: no more rows than held-out ones.
        RuntimeError: a reward model below chance.
    """
    if len(rows) <= held_out:
        raise ValueError(
            f"Only {len(rows)} comparisons could be collected, no more than the {held_out} held-out ones; raise "
            "`num_labels`, or look at why so many responses were rejected (collect/metrics.json)."
        )
    judgement = "ranking" if config.loss_type == "ranking" else "label"
    columns = ("prompt_ids", "completion_ids", judgement)
    data = Dataset.from_dict({key: [row[key] for row in rows] for key in columns})
    model = load_reward_model(start, seed=config.seed, without_head="fresh")
    normalize_over(model, samples, normalize_to)
    trainer = BestOfKRewardTrainer(
        model=model,
        args=config,
        train_dataset=data.select(range(len(rows) - held_out)),
        eval_dataset=data.select(range(len(rows) - held_out, len(rows))),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.train(resume_from_checkpoint=newest_reward_checkpoint(folder))
    trainer.evaluate()
    normalize_over(trainer.model, samples, normalize_to)
    save_with_card(trainer, folder)
    if PartialState().is_main_process:
        write_json(folder / "log_history.json", trainer.state.log_history)
        accuracy = label_accuracy(trainer.model, rows[len(rows) - held_out :])
        write_json(folder / "metrics.json", accuracy)
        refuse_below_chance(accuracy)


def normalize_over(model: PreTrainedModel, samples: list[dict[str, Any]], to: NormalizeTo = "samples") -> None:
    """Normalise a reward model over rows `prompt_ids`, `response_ids`, of which each process scores its share.

    Args:
        to: `"samples"`: mean 0, deviation 1 over the start model's uncut samples (Ziegler et al. 2019);
            `"references"`: shifted to mean 0 over reference summaries (Stiennon et al. 2020).
    """
    rule: dict[str, Any] = {} if to == "samples" else {"target_std": None, "method": "reference_summaries"}
    state = PartialState()
    own = samples[state.process_index :: state.num_processes]
    normalize_reward_model(model, [row["prompt_ids"] for row in own], [row["response_ids"] for row in own], **rule)


def normalized_reward_model(folder: Path) -> PreTrainedModel:
    """The reward model that `train_reward_model` left in `folder`; `ValueError` for one that is not normalised."""
    model = load_reward_model(folder / "model")
    if not is_normalized(model):
        raise ValueError(f"The reward model in {folder} is not normalised; run the stage 'reward' again.")
    return model


def train_policy(
    folder: Path,
    config: ZieglerPPOConfig,
    start: str,
    rows: list[dict[str, Any]],
    rewards: list[RewardFunction],
    task: Task,
    *,
    reference: str | None = None,
    eval_rows: list[dict[str, Any]] | None = None,
    pretraining: Dataset | None = None,
    collection: OnlineCollection | None = None,
    aliases: Mapping[str, str],
) -> None:
    """PPO from a start model, saved in `folder/model` with `log_history.json` beside it.

    Args:
        start: Folder of the start model.
        rows: `prompt`, `prompt_ids` and further columns, which reach the reward functions.
        rewards: What PPO optimises and logs, weighted by the config's `reward_weights`.
        reference: Folder of rho, where it is not the start model.
        eval_rows: Held-out rows for the config's `eval_strategy`.
        pretraining: Documents of PPO-ptx.
        collection: Collects labels meanwhile and replaces its reward model among `rewards`.
        aliases: Further keys of the log to the names of the reward functions whose scores they hold, so that reports
            need not know who the judge was.
    """
    trainer = ZieglerPPOTrainer(
        args=config,
        processing_class=AutoTokenizer.from_pretrained(start),
        model=start,
        reward_model=rewards,
        ref_model=None if reference is None else load_model(reference)[0],
        train_dataset=as_queries(rows),
        eval_dataset=None if eval_rows is None or config.eval_strategy == "no" else as_queries(eval_rows),
        task=task,
        pretraining_dataset=pretraining,
    )
    if collection is not None:
        collection.attach(trainer)
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    save_with_card(trainer, folder)
    if PartialState().is_main_process:
        write_json(folder / "log_history.json", [with_aliases(row, aliases) for row in trainer.state.log_history])


def as_queries(rows: list[dict[str, Any]]) -> Dataset:
    """Rows with `prompt_ids` as a dataset with `input_ids`."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return Dataset.from_dict({"input_ids": columns.pop("prompt_ids"), **columns})


def with_aliases(row: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """A row of the log, with the scores of some reward functions under further keys, also those of evaluations."""
    found = {
        f"{prefix}{key}": row[f"{prefix}rewards/{name}"]
        for key, name in aliases.items()
        for prefix in ("", "eval_")
        if f"{prefix}rewards/{name}" in row
    }
    return {**row, **found}


def refuse_below_chance(accuracy: dict[str, Any]) -> None:
    """`RuntimeError` for a reward model whose agreement with held-out labels is below chance, and by no accident."""
    if chance_of_at_most(accuracy["accuracy"], accuracy["n"], accuracy["chance"]) < NO_ACCIDENT:
        raise RuntimeError(
            f"The reward model agrees with {accuracy['accuracy']:.3f} of the {accuracy['n']} held-out labels, "
            f"guessing with {accuracy['chance']:.3f}; look for labels or candidates in another "
            "order, or for a flipped sign."
        )


def label_accuracy(model: PreTrainedModel, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of a reward model on best-of-K labels, with its interval and the chance level."""
    candidates = [(row["prompt_ids"], ids) for row in rows for ids in row["completion_ids"]]
    scores = iter(score_token_ids(model, *zip(*candidates, strict=True)).tolist())
    predictions = [[next(scores) for _ in row["completion_ids"]] for row in rows]
    return BestOfKAccuracy().compute(predictions=predictions, references=[row["label"] for row in rows])
