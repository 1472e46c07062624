"""PPO on one's own prompts, with a reward model or a Python function.

    accelerate launch recipes/ppo.py --model_name_or_path my-sft --reward my-reward --dataset_name prompts.jsonl \
        --output_dir my-policy --response_length 48 --stop_token eos --missing_eos_penalty 1.0 --total_episodes 10000
    accelerate launch recipes/ppo.py ... --reward my_package.rewards:politeness

Rows: `prompt` (text or chat messages); other columns reach the function.
"""

from trl import ModelConfig

from trl_ziegler import ZieglerPPOConfig
from trl_ziegler.experiments.config_files import RecipeParser
from trl_ziegler.experiments.own_data import PolicyScriptArguments, train_policy

if __name__ == "__main__":
    train_policy(*RecipeParser((PolicyScriptArguments, ZieglerPPOConfig, ModelConfig)).parse_args_and_config())
