"""Train a best-of-K reward model on one's own labels.

    accelerate launch recipes/reward.py --model_name_or_path gpt2 --dataset_name labels.jsonl --output_dir my-reward

Rows: `prompt`, `completions` and one of `label`, `ranking`, `scores`; or `chosen`/`rejected` (see docs).
`--eval_dataset_name FILE` or `--eval_size 0.2` (a share of the prompts, each with all of its rows) holds labels out;
`eval_results.json` in the output directory gets their metrics. Afterwards the model is normalised to mean 0 and
variance 1 over samples of the start model (`--normalization_samples 0` leaves it).

Human ratings go into `scores`, one number per completion on any scale, higher is better:

    {"prompt": "Article ...\nSummary:", "completions": [" One.", " Two.", " Three."], "scores": [1.0, 0.5, 0.5]}

Equal ratings give no pair and, where they are the highest, no best-of-K label, but count for `--loss_type scalar`.
With held-out ratings the metrics hold `eval_pair_accuracy`, the share of the pairs with unequal ratings that are
ordered alike, with a 95 % interval over prompts. A file with other column names is converted in a few lines of Python:

    rows = load_dataset("json", data_files="ratings.jsonl", split="train")
    rows = rows.map(lambda row: {"prompt": row["article"], "completions": [s["text"] for s in row["summaries"]],
                                 "scores": [s["rating"] for s in row["summaries"]]})
    rows.select_columns(["prompt", "completions", "scores"]).to_json("labels.jsonl")
"""

from trl import ModelConfig

from trl_ziegler import BestOfKRewardConfig
from trl_ziegler.experiments.config_files import RecipeParser
from trl_ziegler.experiments.own_data import RewardScriptArguments, train_reward_model

if __name__ == "__main__":
    train_reward_model(
        *RecipeParser((RewardScriptArguments, BestOfKRewardConfig, ModelConfig)).parse_args_and_config()
    )
