"""Training a reward model on best-of-K choices, rankings, pairs or ratings: config and trainer.

Axis letters: `B` records, `K` candidates of a record.
"""

import copy
import os
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer

from .checkpoints import checkpoints, newest_reward_checkpoint
from .fast_layers import use_fast_layers
from .model_cards import RewardCards
from .optim import check_tf_adam, tf_adam
from .preference_collator import DataCollatorForBestOfK, candidate_rewards, count_tokens
from .preference_data import JUDGEMENTS, prepare_preferences
from .preference_losses import best_candidates, preference_loss
from .prefix_sharing import check_prefix_sharing
from .presets import PAPER_REWARD, RELEASED_REWARD, Presets, Table
from .reward_checks import (
    check_last_batch,
    check_reward_config,
    check_trainable,
    position_limit,
    require_adapter_of_classifier,
    require_network,
    require_tokenizer,
    vocabulary,
)
from .reward_model import (
    as_reward_model,
    forget_normalization,
    load_reward_model,
    restore_reward_head,
    save_reward_head,
)

LOSS_TYPES = ("best_of_k", "ranking", "pairwise", "scalar")
OPTIMIZERS = ("hf", "tf_adam")
REFUSED = {
    "pad_token": "masks go by length, so no PAD token is needed",
    "eos_token": "no EOS is appended to a completion, since the reward would be read there",
    "trust_remote_code": "load the model yourself and pass the object",
    "label_names": "the judgement columns are found by name",
    "label_smoothing_factor": "the losses have no smoothing",
}
FILLER = -100.0  # of absent candidates in what `compute_metrics` gets: the value Trainer itself fills up with


@dataclass
class BestOfKRewardConfig(Presets, RewardConfig):
    r"""Configuration of [`BestOfKRewardTrainer`]: TRL's `RewardConfig` with four fields more.

    `max_length` counts a prompt with one completion; records with a longer one are dropped.
    `center_rewards_coefficient` adds that coefficient times the mean of (2 × mean reward of a record)², which for K =
    2 is TRL's (r_chosen + r_rejected)². A `margin` column is taken off the labelled candidate's reward, as in TRL. The
    released code clips no gradients: `max_grad_norm=0`. `.paper(task)` and `.released_code(task)`: see [`Presets`].

    Parameters:
        loss_type (`str`, *optional*, defaults to `"best_of_k"`):
            `"best_of_k"`: −log softmax(r)[label] (Ziegler et al. 2019, equation 1); needs `label`, or reads it from
            `ranking` or `scores`. `"ranking"`: all pairs of a `ranking`, or of `scores` that do not tie (InstructGPT).
            `"pairwise"`: the known pairs only, of which a `label` tells K − 1 (K = 2: TRL's and Stiennon et al. 2020).
            `"scalar"`: squared error to `scores`.
        optimizer (`str`, *optional*, defaults to `"hf"`):
            `"hf"` uses `optim` and its arguments; `"tf_adam"` the reference's Adam, whose epsilon of 1e-5 sits outside
            the bias correction ([`TFAdam`]), with `learning_rate`, `adam_beta1` and `adam_beta2`.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Run the tokens that all candidates of a record begin with, its prompt, once. Each candidate sees the prompt
            and itself only, so rewards, losses and gradients are those of K separate rows, up to rounding. It pays
            where prompts are longer than completions; where they are much shorter, the wider rows cost more than they
            save. It needs `eager` or `sdpa` attention without sliding windows and ALiBi; a model that cannot be served
            is refused, and `False` trains it with one row per candidate.
        label_origin (`str`, *optional*):
            Who gave the labels, in words for the model card. It travels in the model's configuration, so that the card
            of a policy trained on this reward model says it too.

    > [!NOTE]
    > These parameters have default values different from `RewardConfig`:
    > - `bf16`: `False`. The reference runs in float32, its steps of about 1e-7 are lost in bfloat16 weights, and TRL's
    >   default raises on a machine without a GPU.
    > - `gradient_checkpointing`: off (`None`). TRL's `True` costs a second forward pass that small models do not need.
    > - `num_train_epochs`: `1`. The paper uses each label once, as more epochs overfit; TRL trains 3.
    > - `dataloader_pin_memory`: off where there is no accelerator to copy to; torch would warn of it at every loader.
    """

    _paper: ClassVar[Table] = PAPER_REWARD
    _released_code: ClassVar[Table] = RELEASED_REWARD
    bf16: bool | None = field(default=False, metadata={"help": "Train under bfloat16 autocast."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass to save memory."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the labels; the paper makes one."})
    loss_type: Literal["best_of_k", "ranking", "pairwise", "scalar"] = field(
        default="best_of_k", metadata={"help": "Which loss, and with it which judgement column, is used."}
    )
    optimizer: Literal["hf", "tf_adam"] = field(
        default="hf", metadata={"help": "'hf' follows `optim`; 'tf_adam' is the reference's Adam."}
    )
    shared_prefix: bool = field(
        default=True,
        metadata={"help": "Run a prompt once for all its candidates; exact, and refused where it is not."},
    )
    label_origin: str | None = field(
        default=None, metadata={"help": "Who gave the labels, in words for the model card."}
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in REFUSED and value != item.default:
                raise ValueError(f"`{item.name}` is {value!r}, which this trainer does not use: {REFUSED[item.name]}.")
        for name, choices in (("loss_type", LOSS_TYPES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it can be {' or '.join(map(repr, choices))}.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"`max_length` is {self.max_length}; give at least 1, or None for no limit.")
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        # Without it `Trainer` leaves each of several processes on CPUs to itself, and refuses `bf16` there.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        check_reward_config(self)
        if self.optimizer == "tf_adam":
            check_tf_adam(self)


class BestOfKRewardTrainer(RewardCards, RewardTrainer):
    """Trains a reward model on choices among K completions (Ziegler et al. 2019, section 2.1).

    A subclass of TRL's `RewardTrainer`, which keeps PEFT, quantization, chat templates, evaluation, logging and the
    hub. Overrides: `_prepare_dataset` and the collator (formats with K candidates, no EOS appended, records checked),
    `compute_loss` and `log` (the losses and metrics), `_set_signature_columns_if_needed`, `train` (a normalisation no
    longer holds; half-written checkpoints are passed over), and `_save`, `_load_from_checkpoint`, `_load_best_model`
    (the head as it is, beside the folded one).
    Its model card, beside each model it saves, says how to load the model, who gave the labels, and the accuracy.
    The tokenizer's PAD token stays as it was.

    Metrics, also with `eval_`: `loss`; `accuracy` (share of records whose best candidate has the highest reward; a tie
    counts as a miss); `chance` (what guessing would give); `margin` (reward of the best minus the mean of the others);
    `mean_reward`, `std_reward` (of all candidates); `min_reward`, `max_reward` (mean over batches); `num_tokens`.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A path or hub id, loaded with [`load_reward_model`]: what has no reward head gets a fresh one, seeded with
            `args.seed`. Or a one-label classifier, which is converted in place and keeps its head; for a fresh one
            call [`as_reward_model`]`(model, fresh_head=True)` before.
        args ([`BestOfKRewardConfig`], *optional*): The configuration.
        data_collator (`Callable`, *optional*): By default [`DataCollatorForBestOfK`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Records, see `prepare_preferences`.
        eval_dataset (as `train_dataset`, or a `dict` of such, *optional*): Records to evaluate on.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer; by default that of the model's path.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): For a model given as a path.
        peft_config ([`~peft.PeftConfig`], *optional*): Wraps the model; the head is always trained and saved with it.
        optimizer_cls_and_kwargs (`tuple`, *optional*): As for `Trainer`; refused with `optimizer="tf_adam"`.
        kwargs: Further arguments of `RewardTrainer`: `compute_metrics`, `callbacks`, `optimizers`, ... What
            `compute_metrics` gets as predictions is `[records, K]` rewards, −100 where there is no candidate.
    """

    _tag_names = ("trl", "reward-trainer", "best-of-k")
    _name = "Best-of-K Reward"
    _signature_columns: list[str] | None
    _paper = {  # noqa: RUF012 - as in TRL's trainers
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": """\
@article{ziegler2019finetuning,
  title   = {Fine-Tuning Language Models from Human Preferences},
  author  = {Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and Radford, Alec and
             Amodei, Dario and Christiano, Paul and Irving, Geoffrey},
  journal = {arXiv preprint arXiv:1909.08593},
  year    = {2019}
}""",
    }

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel | PeftModel,
        args: BestOfKRewardConfig | None = None,
        data_collator: Any | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        quantization_config: Any | None = None,
        peft_config: PeftConfig | None = None,
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is not None and not isinstance(args, BestOfKRewardConfig):
            raise ValueError(f"`args` is a {type(args).__name__}; give a `BestOfKRewardConfig`.")
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        if not isinstance(model, str):
            require_network(model)
        name = (model if isinstance(model, str) else model.config._name_or_path).rstrip("/").split("/")[-1]
        args = args or BestOfKRewardConfig(f"{name}-BestOfK")
        if args.optimizer == "tf_adam":
            optimizer_cls_and_kwargs = tf_adam(args, optimizer_cls_and_kwargs, kwargs.get("optimizers"))
        model = _model(model, args, quantization_config)
        use_fast_layers(model)
        if args.shared_prefix:
            check_prefix_sharing(model)
        if data_collator is None:
            data_collator = DataCollatorForBestOfK(
                pad_to_multiple_of=args.pad_to_multiple_of, shared_prefix=args.shared_prefix
            )
        init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None  # used up; the parent would log a warning
        if processing_class is None and not model.config._name_or_path:
            raise ValueError("`processing_class` is missing, and `model` does not know where it came from; give both.")
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config._name_or_path)
        require_tokenizer(processing_class)
        self._context_limit, self._vocab_size = position_limit(model.config), vocabulary(model)
        pads = processing_class.pad_token, model.config.pad_token_id
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=_with_head(peft_config),
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            **kwargs,
        )
        # TRL sets PAD := EOS; saved with the model, that would make a plain load read the reward before a final EOS.
        processing_class.pad_token, self.model.config.pad_token_id = pads
        args.model_init_kwargs = init_kwargs
        as_reward_model(self.model)  # a PeftModel made by the parent
        check_trainable(self.model)
        if isinstance(train_dataset, Dataset):
            check_last_batch(len(self.train_dataset), _global_batch_size(args), args.dataloader_drop_last)
        self.model.config.label_origin = args.label_origin
        if args.loss_type == "best_of_k":
            self.label_names = ["labels"]

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: BestOfKRewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        return prepare_preferences(
            dataset,
            processing_class,
            loss_type=args.loss_type,
            max_length=args.max_length,
            context_limit=self._context_limit,
            vocab_size=self._vocab_size,
            least_left=_global_batch_size(args) if dataset_name == "train" else 1,
            num_proc=args.dataset_num_proc,
            name=dataset_name,
        )

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            judgements = ["label"] if self.args.loss_type == "best_of_k" else JUDGEMENTS[self.args.loss_type]
            self._signature_columns = ["prompt_ids", "completion_ids", *judgements, "margin"]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, SequenceClassifierOutput]:
        """The loss of a batch of [`DataCollatorForBestOfK`], from one forward pass over all its candidates."""
        mask = inputs["candidate_mask"]
        rewards = candidate_rewards(model, inputs)  # [B, K]
        loss = preference_loss(self.args.loss_type, rewards, inputs, mask)
        if self.args.center_rewards_coefficient is not None:
            mean = rewards.sum(1) / mask.sum(1)
            loss = loss + self.args.center_rewards_coefficient * (2 * mean).square().mean()
        self._record(rewards.detach(), inputs)
        outputs = SequenceClassifierOutput(logits=rewards.masked_fill(~mask, FILLER))
        return (loss, outputs) if return_outputs else loss

    def _record(self, rewards: Tensor, inputs: dict[str, Tensor]) -> None:
        """Collect the metrics of a batch over all processes; `log` averages what was collected."""
        training = self.model.training
        # When evaluating, the records that fill up the last batch are left out; in training the two must not be told
        # apart by the end of the data, which accumulation reaches before its first micro-batch is computed.
        gather = self.accelerator.gather if training else self.accelerator.gather_for_metrics
        rows = rewards.masked_fill(~inputs["candidate_mask"], torch.nan)
        rows = self.accelerator.pad_across_processes(rows, dim=1, pad_index=torch.nan)
        gathered = gather(torch.cat([_record_statistics(rewards, inputs), rows], 1).contiguous()).cpu()
        metrics = self._metrics["train" if training else "eval"]
        for key, column in zip(("accuracy", "chance", "margin"), gathered.T, strict=False):
            if not column.isnan().all():
                metrics[key].extend(column[~column.isnan()].tolist())
        present = gathered[:, 3:][~gathered[:, 3:].isnan()]
        metrics["mean_reward"].extend(present.tolist())
        metrics["min_reward"].append(present.min().item())
        metrics["max_reward"].append(present.max().item())
        if training:
            self._total_train_tokens += self.accelerator.gather(count_tokens(inputs)).sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Average the metrics into `logs` itself, which `evaluate` returns (older releases of TRL fill a copy)."""
        training = self.model.training
        metrics = self._metrics["train" if training else "eval"]
        if "mean_reward" in metrics:
            metrics["std_reward"] = [torch.tensor(metrics["mean_reward"]).std(correction=0).item()]
        logs.update({f"{'' if training else 'eval_'}{key}": fmean(values) for key, values in metrics.items()})
        metrics.clear()
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; a normalisation made before does not hold afterwards and its record is dropped.

        `True` resumes the newest checkpoint whose writing was not cut off, and starts over where that leaves none.
        """
        forget_normalization(self.model)
        if resume_from_checkpoint is True and checkpoints(self.args.output_dir):
            resume_from_checkpoint = newest_reward_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            save_reward_head(self.model, output_dir or self.args.output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_fsdp_enabled:  # whose own checkpoint holds the head as it is
            restore_reward_head(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            restore_reward_head(self.model, self.state.best_model_checkpoint)


def _global_batch_size(args: BestOfKRewardConfig) -> int:
    return args.train_batch_size * args.world_size


def _model(
    model: str | PreTrainedModel | PeftModel, args: BestOfKRewardConfig, quantization_config: Any | None
) -> PreTrainedModel | PeftModel:
    if not isinstance(model, str):
        if args.model_init_kwargs or quantization_config is not None:
            name = "model_init_kwargs" if args.model_init_kwargs else "quantization_config"
            raise ValueError(f"`{name}` is given, but `model` is loaded already; pass a path, or leave `{name}` out.")
        return as_reward_model(model)
    init_kwargs = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
    return load_reward_model(model, seed=args.seed, is_trainable=True, without_head="fresh", **init_kwargs)


def _with_head(peft_config: PeftConfig | None) -> PeftConfig | None:
    """The same configuration, with the head among the modules trained and saved in full."""
    if peft_config is None:
        return None
    require_adapter_of_classifier(peft_config)
    peft_config = copy.deepcopy(peft_config)
    peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), "score"})
    return peft_config


def _record_statistics(rewards: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """`[B, 3]`: hit (0 or 1), chance, and margin (NaN where all candidates are judged equal) of each record."""
    mask = inputs["candidate_mask"]
    best = best_candidates(inputs, mask)
    others = mask & ~best
    hit = rewards.masked_fill(~best, -torch.inf).amax(1) > rewards.masked_fill(~others, -torch.inf).amax(1)
    means = [torch.where(group, rewards, 0).sum(1) / group.sum(1) for group in (best, others)]
    return torch.stack([hit.float(), best.sum(1) / mask.sum(1), means[0] - means[1]], 1)
