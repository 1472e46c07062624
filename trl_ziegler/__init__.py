"""Fine-Tuning Language Models from Human Preferences (Ziegler et al. 2019), as an add-on to TRL."""

from ._compat import check_trl_version  # isort: skip  (first: it names an unsupported TRL before an import of it fails)
from ._version import __version__
from .actor_critic import ActorCritic
from .kl_control import AdaptiveKLController, FixedKLController
from .labelers import Labeler, ScoreLabeler, SentimentScorer, VividnessScorer
from .metrics import (
    Agreement,
    BestOfKAccuracy,
    Copying,
    LengthControlledWinRate,
    Rouge,
    WinRate,
    copier_alarm,
    exact_frontier,
    frontier_fraction,
    optimum_at,
    sampled_frontier,
)
from .online import OnlineCollection
from .online_schedule import CollectionSchedule, RoundSchedule
from .openai_labels import load_openai_labels, save_openai_labels
from .optim import TFAdam
from .ppo_config import ZieglerPPOConfig
from .ppo_trainer import ZieglerPPOTrainer
from .preference_data import tokenize_prompt_completion
from .reward_model import (
    RewardNormalization,
    as_reward_model,
    is_normalized,
    load_reward_model,
    normalize_reward_model,
    score_token_ids,
)
from .reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer, DataCollatorForBestOfK
from .reward_wrapper import KLEntropyReward
from .tasks import BOOKS, CNNDM, STIENNON_CNNDM, STIENNON_TLDR, TLDR, Task

__all__ = [
    "BOOKS",
    "CNNDM",
    "STIENNON_CNNDM",
    "STIENNON_TLDR",
    "TLDR",
    "ActorCritic",
    "AdaptiveKLController",
    "Agreement",
    "BestOfKAccuracy",
    "BestOfKRewardConfig",
    "BestOfKRewardTrainer",
    "CollectionSchedule",
    "Copying",
    "DataCollatorForBestOfK",
    "FixedKLController",
    "KLEntropyReward",
    "Labeler",
    "LengthControlledWinRate",
    "OnlineCollection",
    "RewardNormalization",
    "Rouge",
    "RoundSchedule",
    "ScoreLabeler",
    "SentimentScorer",
    "TFAdam",
    "Task",
    "VividnessScorer",
    "WinRate",
    "ZieglerPPOConfig",
    "ZieglerPPOTrainer",
    "__version__",
    "as_reward_model",
    "check_trl_version",
    "copier_alarm",
    "exact_frontier",
    "frontier_fraction",
    "is_normalized",
    "load_openai_labels",
    "load_reward_model",
    "normalize_reward_model",
    "optimum_at",
    "sampled_frontier",
    "save_openai_labels",
    "score_token_ids",
    "tokenize_prompt_completion",
]
