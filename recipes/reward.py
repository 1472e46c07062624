"""Train a best-of-K reward model on one's own labels.

    accelerate launch recipes/reward.py --model_name_or_path gpt2 --dataset_name labels.jsonl --output_dir my-reward

Rows: `prompt`, `completions` and one of `label`, `ranking`, `scores`; or `chosen`/`rejected` (see docs). Afterwards
the model is normalised to mean 0 and variance 1 over samples of the start model (`--normalization_samples 0` leaves
it).
"""

from trl_ziegler import BestOfKRewardConfig
from trl_ziegler.experiments.own_data import RewardScriptArguments, script_parser, train_reward_model

if __name__ == "__main__":
    train_reward_model(*script_parser(RewardScriptArguments, BestOfKRewardConfig).parse_args_and_config())
