"""What a reward model cannot be made of, how it cannot be trained, and what it cannot read: one sentence for each."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from peft import PeftConfig, PeftModel, TaskType
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig

from .ranges import Range, check_counts, check_ranges

logger = get_logger(__name__)

RANGES = {
    "learning_rate": Range(0),
    "center_rewards_coefficient": Range(0, why=": a negative one would drive rewards away from 0"),
}

WRAPPED = ("module", "_orig_mod", "model")
"""Where `DataParallel`, `torch.compile` and a pipeline keep the model."""


# ---- What a reward model is made of ---------------------------------------------------------------------------------


def require_network(model: Any) -> None:
    """Refuse what is neither a model of transformers nor an adapter of one."""
    if isinstance(model, (PreTrainedModel, PeftModel)) and not hasattr(model, "_orig_mod"):
        return
    inside = [name for name in WRAPPED if isinstance(getattr(model, name, None), (PreTrainedModel, PeftModel))]
    what = "None" if model is None else f"a {type(model).__name__}"
    if inside:
        raise ValueError(f"`model` is {what}; give the model inside it, its `{inside[0]}`.")
    raise ValueError(
        f"`model` is {what}; give a sequence classifier of transformers (`load_reward_model` loads one), or a "
        "PeftModel of one."
    )


def require_decoder(config: Any, what: str) -> None:
    """Refuse an encoder-decoder by its configuration."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{what} is a '{config.model_type}', an encoder-decoder, but a reward is read at the last token of prompt "
            "and completion; take a decoder alone (GPT-2, Llama, Qwen2, ...)."
        )


def require_score_alone(base: PreTrainedModel, what: str) -> None:
    """Refuse a classifier whose head is not called `score`, as that of encoders is not."""
    children = {name for name, module in base.named_children() if any(True for _ in module.parameters())}
    others = children - {"score", base.base_model_prefix}
    if "score" not in children or others:
        raise ValueError(
            f"{what} is a {type(base).__name__} with the head {' and '.join(sorted(others)) or None} instead of "
            "`score`, as models have that read in both directions; a reward is read at the last token: take a decoder "
            "(GPT-2, Llama, Qwen2, ...)."
        )


def require_one_label(config: Any) -> None:
    """Refuse a classifier with several labels."""
    if config.num_labels != 1:
        raise ValueError(
            f"`num_labels` is {config.num_labels}, but a reward is one number; load the classifier with num_labels=1, "
            "or start from the language model it was made from."
        )


@cache
def warn_of_fresh_head(path: str) -> None:
    """Warn once of a model that got a fresh head."""
    # Not the logger of accelerate, which needs its state, as loading a model does not.
    logging.getLogger(__name__).warning(
        f"{path} has no reward head and gets a fresh one, whose rewards mean nothing before it is trained "
        "(`without_head='fresh'` if that is meant)."
    )


# ---- Adapters -------------------------------------------------------------------------------------------------------


def require_no_virtual_tokens(peft_config: PeftConfig) -> None:
    """Refuse prompt learning: its virtual tokens move the slot a reward is read at."""
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"`peft_config` is {peft_config.peft_type.value}, whose virtual tokens move the slot a reward is read at; "
            "use LoRA or another adapter of weights."
        )


def require_adapter_of_classifier(peft_config: Any) -> None:
    """Refuse what is no adapter's configuration, or one of another kind of model."""
    if not isinstance(peft_config, PeftConfig):
        raise ValueError(
            f"`peft_config` is a {type(peft_config).__name__}; give a configuration of PEFT, for example "
            "`LoraConfig(task_type='SEQ_CLS')`."
        )
    if peft_config.task_type not in (None, TaskType.SEQ_CLS):
        raise ValueError(
            f"`task_type` of `peft_config` is '{TaskType(peft_config.task_type).value}'; a reward model needs "
            "'SEQ_CLS'."
        )
    require_no_virtual_tokens(peft_config)


def require_trained_head(model: PeftModel, base: PreTrainedModel) -> None:
    """Refuse an adapter that leaves the head as it is."""
    require_no_virtual_tokens(model.active_peft_config)
    if not isinstance(base.score, ModulesToSaveWrapper):
        raise ValueError(
            "This PeftModel neither trains nor saves the reward head; make it with `modules_to_save=['score']`, or "
            "pass `peft_config` to the trainer."
        )


# ---- How it is trained ----------------------------------------------------------------------------------------------


def check_reward_config(args: RewardConfig) -> None:
    """Refuse numbers with which nothing is trained, or which end inside torch."""
    check_counts(args, ("per_device_train_batch_size", "gradient_accumulation_steps"))
    check_ranges(args, RANGES)
    if args.max_steps <= 0 and not args.num_train_epochs > 0:
        raise ValueError(
            f"`num_train_epochs` is {args.num_train_epochs} and `max_steps` {args.max_steps}, with which nothing is "
            "trained; give one of them a positive value."
        )
    if args.fp16 and args.device.type == "cpu":  # accelerate leaves it out there without a word
        raise ValueError("`fp16` is True, but on a CPU it would train in float32; set `bf16`, or neither.")
    if args.fp16_full_eval and args.use_cpu:
        raise ValueError("`fp16_full_eval` is True on a CPU, where it only loses precision; leave it out.")


def require_tokenizer(processing_class: Any) -> None:
    """Refuse what is no tokenizer."""
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"`processing_class` is {processing_class!r}; give the model's tokenizer, for example "
            "`AutoTokenizer.from_pretrained(path)`."
        )


def check_trainable(model: PreTrainedModel | PeftModel) -> None:
    """Refuse weights that nothing would move; warn of those that steps get lost in."""
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    if not trained:
        adapter, whole = "load the adapter with `is_trainable=True`", "call `model.requires_grad_(True)` before"
        raise ValueError(
            "`model` has no parameter with `requires_grad`, so nothing would be trained; "
            f"{adapter if is_peft_model(model) else whole}."
        )
    if torch.float16 in trained:
        raise ValueError(
            "`model` trains float16 weights, which steps get lost in or overflow; load it with `dtype=torch.float32`, "
            "and set `bf16` to compute in bfloat16."
        )
    if torch.bfloat16 in trained:
        logger.warning(
            "`model` trains bfloat16 weights, which round away steps of less than a 250th; load it with "
            "`dtype=torch.float32`, and set `bf16` to compute in bfloat16."
        )


def check_last_batch(records: int, batch_size: int, drop_last: bool) -> None:
    """Refuse data that make no batch of all processes, where an incomplete one is left out."""
    if drop_last and records < batch_size:
        raise ValueError(
            f"`dataloader_drop_last` is True, and the {records} records of `train_dataset` are fewer than one batch "
            f"of {batch_size}, so nothing would be trained; lower `per_device_train_batch_size`."
        )


# ---- What it reads --------------------------------------------------------------------------------------------------


def position_limit(config: Any) -> int | None:
    """Most tokens a model numbers positions for; None where it does not."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary(model: PreTrainedModel | PeftModel) -> int:
    """Number of ids that a model embeds."""
    return model.get_input_embeddings().num_embeddings


def require_readable(model: PreTrainedModel | PeftModel, sequences: Sequence[Sequence[int]]) -> None:
    """Refuse sequences that are empty, longer than the model's context, or hold an id it does not know."""
    size, limit = vocabulary(model), position_limit(model.config)
    for entry, ids in enumerate(sequences):
        if not ids:
            raise ValueError(f"Entry {entry} has neither query nor response tokens; drop it.")
        if limit is not None and len(ids) > limit:
            raise ValueError(f"Entry {entry} has {len(ids)} tokens, the reward model reads {limit}; cut it first.")
        if max(ids) >= size or min(ids) < 0:
            unknown = next(i for i in ids if not 0 <= i < size)
            raise ValueError(
                f"Entry {entry} has the id {unknown}, which is outside the reward model's {size}; give ids of its own "
                "tokenizer."
            )
