"""The reward model: an ordinary sequence classifier whose head has a gain and a bias, read at the last present token.

r = g (w·h + c) + d, with h the final layer-norm output at the last present token (Ziegler et al. 2019, section 2.1;
openai/lm-human-preferences, rewards.py). On disk the gain is folded into `score.weight`, and everything that does not
depend on the input is one number in the configuration, so that a plain
`AutoModelForSequenceClassification.from_pretrained` differs from ours by exactly that number.

Axis letters: `N` samples.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, is_peft_model
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file

from ._files import found_model
from ._logs import held_back
from .functional import gain_and_bias
from .preference_collator import right_padded
from .prefix_sharing import (
    PackedRows,
    can_share_prefix,
    pack_shared_prefix,
    packed_inputs,
    sharing_groups,
)
from .reward_checks import (
    require_decoder,
    require_network,
    require_one_label,
    require_readable,
    require_score_alone,
    require_trained_head,
    warn_of_fresh_head,
)
from .reward_mixin import PeftRewardModelMixin, RewardHead, RewardModelMixin, reward_bias
from .sharding import in_parts_like

REWARD_HEAD_FILE = "reward_head.safetensors"
HUB_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only")


def as_reward_model(
    model: PreTrainedModel | PeftModel, *, fresh_head: bool = False, seed: int = 0
) -> PreTrainedModel | PeftModel:
    """Convert a one-label sequence classifier, or a `PeftModel` of one, in place into a reward model.

    The class of the object becomes a subclass of what it was, with the same name. Idempotent.

    Args:
        model: Its head must be a linear layer called `score` (GPT-2, Llama, Qwen2, Mistral, Gemma, ...).
        fresh_head: Start the head afresh; otherwise it stays, with gain 1 and the offset of `config.reward_bias`.
        seed: Of the fresh head's weights.

    Returns:
        The same object.

    Raises:
        ValueError: several labels, another head, prompt learning, or an adapter that does not train the head.
    """
    require_network(model)
    base = model.get_base_model() if is_peft_model(model) else model
    if not isinstance(base, RewardModelMixin):
        require_decoder(base.config, "`model`")
        if not hasattr(base, "score") and base.get_output_embeddings() is not None:
            raise ValueError(
                f"`model` is a {type(base).__name__}, a language model; `load_reward_model(path)` puts a reward head "
                "on one in a folder or on the hub."
            )
        require_one_label(base.config)
        require_score_alone(base, "`model`")
        _convert_head(base)
        base.__class__ = _mixed(RewardModelMixin, base.__class__)
        # transformers keeps this one per object; Trainer reads it to tell expected missing keys from unexpected ones.
        base._keys_to_ignore_on_save = set(RewardModelMixin._keys_to_ignore_on_save)
    if base is not model:
        require_trained_head(model, base)
        if not isinstance(model, PeftRewardModelMixin):
            model.__class__ = _mixed(PeftRewardModelMixin, model.__class__)
    if fresh_head:
        reward_head(model).reset(seed)
        forget_normalization(model)
    return model


def reward_head(model: PreTrainedModel | PeftModel) -> RewardHead:
    """The head in use: the model's own, or the active adapter's copy of it."""
    score = (model.get_base_model() if is_peft_model(model) else model).score
    return score.modules_to_save[score.active_adapters[0]] if isinstance(score, ModulesToSaveWrapper) else score


def load_reward_model(
    path: str | os.PathLike,
    *,
    seed: int = 0,
    is_trainable: bool = False,
    without_head: Literal["warn", "fresh", "refuse"] = "warn",
    **kwargs: Any,
) -> PreTrainedModel | PeftModel:
    """Load a reward model from a folder or hub id.

    Args:
        path: A reward model saved by us, its PEFT adapter folder, a one-label sequence classifier (its head is kept),
            or a model without such a head, for instance a causal language model (it gets a fresh one).
        seed: Of a fresh head.
        is_trainable: Whether an adapter is loaded to be trained further.
        without_head: What to do with a model without such a head: give it a fresh one, which is where training
            begins, and warn of it once; or without a word; or refuse it.
        kwargs: Go to `from_pretrained`. `dtype` is float32 unless given; `trust_remote_code` is refused.

    Raises:
        FileNotFoundError: a path where nothing is.
        ValueError: remote code, a classifier with another number of labels, an architecture without a `score` head, or
            a model without a reward head where that is refused.
    """
    if kwargs.pop("trust_remote_code", False):
        raise ValueError("`trust_remote_code=True` is not supported; load the model yourself and pass the object.")
    with found_model(path, "path") as found:
        return _load(found, seed, is_trainable, without_head, kwargs)


def _load(
    path: str, seed: int, is_trainable: bool, without_head: str, kwargs: dict[str, Any]
) -> PreTrainedModel | PeftModel:
    hub: dict[str, Any] = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    if find_adapter_config_file(path, **hub) is not None:
        return _load_adapter(path, seed, is_trainable, hub, kwargs)
    config = AutoConfig.from_pretrained(path, **hub)
    require_decoder(config, path)
    if any("ForSequenceClassification" in name for name in config.architectures or []):
        require_one_label(config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{path} is a '{config.model_type}', which transformers has no sequence classifier for.")
    reward_class = _mixed(RewardModelMixin, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])
    kwargs = {"dtype": torch.float32, **kwargs, "num_labels": 1, "output_loading_info": True}
    with held_back("transformers.modeling_utils", "LOAD REPORT") as reports:
        model, info = reward_class.from_pretrained(path, **kwargs)
        wrong = {**info, "missing_keys": set(info["missing_keys"]) - {"score.weight"}}  # a fresh head is meant
        if not any(wrong.values()):
            reports.clear()
    require_score_alone(model, path)
    headless = "score.weight" in info["missing_keys"]
    if headless and without_head == "refuse":
        raise ValueError(f"{path} is a language model without a reward head; train one with recipes/reward.py.")
    if headless and without_head == "warn":
        warn_of_fresh_head(path)
    return as_reward_model(model, fresh_head=headless, seed=seed)


def save_reward_head(
    model: PreTrainedModel | PeftModel, folder: str | os.PathLike, *, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write the parameters of the head as they are (not folded), for a checkpoint that resumes bit for bit.

    Args:
        model: A reward model.
        folder: Gets a file `reward_head.safetensors`.
        state_dict: The model's, where its parameters are sharded and had to be gathered.
    """
    state = reward_head(model).state_dict()
    if state_dict is not None:
        name = next(name for name, module in model.named_modules() if module is reward_head(model))
        state = {key: state_dict[f"{name}.{key}"] for key in state}
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, Path(folder, REWARD_HEAD_FILE)
    )


def restore_reward_head(model: PreTrainedModel | PeftModel, folder: str | os.PathLike) -> None:
    """Read what `save_reward_head` wrote."""
    path = Path(folder, REWARD_HEAD_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {REWARD_HEAD_FILE}, so it is not a complete checkpoint of a reward model; resume from "
            "another one, or load it as a start with `load_reward_model`."
        )
    head = reward_head(model)
    head.load_state_dict(in_parts_like(load_file(path), head.state_dict()))


def score_token_ids(
    model: PreTrainedModel | PeftModel,
    query_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Rewards of responses: the one scoring path of normalisation, labelling and PPO.

    A query that occurs several times is run once for several of its responses where the model can share a prefix and
    that saves work; the rewards are those of separate rows up to rounding.

    Args:
        model: A reward model; a one-label classifier is converted in place.
        query_ids: Raw queries, without prefix, suffix and padding.
        response_ids: One response per query, cut where the task cuts it and without padding.
        batch_size: Sequences per forward pass; those of similar length share one, the result keeps your order.
        progress: Show a progress bar.

    Returns:
        `[N]`, float32, on the CPU, without gradient, dropout off.

    Raises:
        ValueError: text instead of ids, different numbers of queries and responses, or a pair without any token, of
            more than the model reads, or with an id it does not know.
    """
    for name, given in (("query_ids", query_ids), ("response_ids", response_ids)):
        if len(given) and isinstance(given[0], str):
            raise ValueError(f"`{name}` holds text; give token ids, for example `tokenizer(texts)['input_ids']`.")
    if len(query_ids) != len(response_ids):
        raise ValueError(
            f"`response_ids` has {len(response_ids)} entries for {len(query_ids)} queries; give one each."
        )
    sequences = [[*query, *response] for query, response in zip(query_ids, response_ids, strict=True)]
    model = as_reward_model(model)
    require_readable(model, sequences)
    most = batch_size if can_share_prefix(model) else 1
    groups = sharing_groups(query_ids, [len(ids) for ids in sequences], most=most)
    rewards = torch.empty(len(sequences))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for rows in tqdm(_passes(groups, sequences, batch_size), desc="Scoring", disable=not progress):
            scored = _rewards(model, [[sequences[i] for i in group] for group in rows])
            rewards[[i for group in rows for i in group]] = scored.to(rewards)
    model.train(was_training)
    return rewards


@dataclass(frozen=True)
class RewardNormalization:
    """How a reward model was normalised; travels in the configuration as `reward_normalization`.

    Attributes:
        method: What the samples were.
        target_mean: Mean reward of the samples afterwards.
        target_std: Their population standard deviation afterwards; None where only the mean was moved.
        n_samples: How many were scored, over all processes.
        measured_mean: Their mean before, with gain 1 and offset 0.
        measured_std: Their population standard deviation before.
    """

    method: str
    target_mean: float
    target_std: float | None
    n_samples: int
    measured_mean: float
    measured_std: float


def normalize_reward_model(
    model: PreTrainedModel | PeftModel,
    query_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    target_mean: float = 0.0,
    target_std: float | None = 1.0,
    method: str = "reference_samples",
    batch_size: int = 64,
) -> RewardNormalization:
    """Set gain and offset so that the given samples have the target mean and standard deviation.

    Ziegler et al. 2019 normalise before and after training on *full, uncut* responses of the start model to queries
    of the data set (openai/lm-human-preferences, train_reward.py:normalize). Stiennon et al. 2020 only shift, to a
    mean of 0 over the reference summaries: `target_std=None`. The earlier gain and offset are reset first, so the
    result depends on the raw head alone. The record is forgotten when the model is trained further.

    Args:
        model: Changed in place.
        query_ids: Raw queries. Under several processes, this process's share of them.
        response_ids: One response per query, without padding.
        target_mean: Mean reward to reach.
        target_std: Population standard deviation to reach, or None to shift only.
        method: What the samples are, kept in the record.
        batch_size: Sequences per forward pass.

    Raises:
        ValueError: no samples, or samples that all score the same while `target_std` is given.
    """
    head = reward_head(as_reward_model(model))
    head.set_affine(1.0, 0.0)
    scores = score_token_ids(model, query_ids, response_ids, batch_size=batch_size).double()
    if PartialState().num_processes > 1:
        scores = torch.tensor(gather_object(scores.tolist()), dtype=torch.float64)
    if not len(scores):
        raise ValueError("`query_ids` is empty; a reward model is normalised over at least one sample.")
    mean, std = scores.mean().item(), scores.std(correction=0).item()
    gain, offset = (1.0, target_mean - mean)
    if target_std is not None:
        gain, offset = (x.item() for x in gain_and_bias(scores, target_mean=target_mean, target_std=target_std))
    head.set_affine(gain, offset)
    record = RewardNormalization(method, target_mean, target_std, len(scores), mean, std)
    model.config.reward_normalization = asdict(record)
    return record


def is_normalized(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model was normalised and not trained or given a fresh head since."""
    return getattr(model.config, "reward_normalization", None) is not None


def forget_normalization(model: PreTrainedModel | PeftModel) -> None:
    """Drop the record of a normalisation that no longer holds; gain and offset stay."""
    model.config.reward_normalization = None


@cache
def _mixed(mixin: Any, cls: Any) -> Any:
    # The same name and module keep `config.architectures` and PEFT's record of the base class loadable by anyone.
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": mixin.__doc__})


def _convert_head(base: PreTrainedModel) -> None:
    score: Any = getattr(base, "score", None)
    wrapped = isinstance(score, ModulesToSaveWrapper)
    linears = [score.original_module, *score.modules_to_save.values()] if wrapped else [score]
    if any(type(linear) is not nn.Linear for linear in linears):
        raise ValueError(
            f"The `score` of this {type(base).__name__} is a {type(linears[-1]).__name__}; a reward model needs a "
            "linear layer there. With LoRA leave `score` out of `target_modules` and put it into `modules_to_save`."
        )
    heads = [_head_from(linear, reward_bias(base.config)) for linear in linears]
    if not wrapped:
        base.score = heads[0]
        return
    score.original_module = heads[0]
    for name, head in zip(score.modules_to_save, heads[1:], strict=True):
        score.modules_to_save[name] = head


@torch.no_grad()
def _head_from(linear: nn.Linear, offset: float) -> RewardHead:
    head = RewardHead(linear.in_features).to(linear.weight.device, linear.weight.dtype)
    head.weight.copy_(linear.weight)
    if linear.bias is not None:
        head.bias.copy_(linear.bias)
    head.offset.fill_(offset)
    return head.requires_grad_(linear.weight.requires_grad)


def _load_adapter(path: str, seed: int, is_trainable: bool, hub: dict[str, Any], kwargs: dict[str, Any]) -> PeftModel:
    base_path = PeftConfig.from_pretrained(path, **hub).base_model_name_or_path
    if base_path is None:
        raise ValueError(
            f"The adapter in {path} does not name its base model; set `base_model_name_or_path` in its config."
        )
    base = load_reward_model(
        base_path, seed=seed, without_head="fresh", **{k: v for k, v in kwargs.items() if k != "revision"}
    )
    model = as_reward_model(PeftModel.from_pretrained(base, path, is_trainable=is_trainable, **hub))
    config = cached_file(path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if config is not None:  # PEFT alone writes none
        saved = json.loads(Path(config).read_text(encoding="utf-8"))
        for name in ("reward_normalization", "label_origin"):
            setattr(base.config, name, saved.get(name))
    return model


def _passes(groups: list[list[int]], sequences: list[list[int]], batch_size: int) -> list[list[list[int]]]:
    """The groups by falling length, as many a pass as have `batch_size` sequences."""
    passes: list[list[list[int]]] = []
    room = 0
    for group in sorted(groups, key=lambda group: sum(len(sequences[i]) for i in group), reverse=True):
        if len(group) > room:
            passes.append([])
            room = batch_size
        passes[-1].append(group)
        room -= len(group)
    return passes


def _rewards(model: PreTrainedModel | PeftModel, groups: list[list[list[int]]]) -> Tensor:
    """`[N]`: of all sequences, group by group; those of a group share a row."""
    counts = torch.tensor([len(group) for group in groups], device=model.device)
    if counts.max() == 1:
        padded = right_padded([ids for group in groups for ids in group])
        return model(**{name: x.to(model.device) for name, x in padded.items()}).logits[:, 0]
    inputs = packed_inputs(PackedRows(*(x.to(model.device) for x in pack_shared_prefix(groups))))
    rewards = model(**inputs).logits  # [B, K]
    return rewards[torch.arange(rewards.shape[1], device=rewards.device) < counts[:, None]]
