"""The scripts for one's own labels, prompts and models: they train, save, continue, and refuse what they cannot do."""

import itertools
import json
import re
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from trl_ziegler.experiments import own_data
from trl_ziegler.experiments.own_data import (
    PolicyScriptArguments,
    RewardScriptArguments,
    _rated,
    load_reward,
    split_by_prompt,
    train_policy,
    train_reward_model,
)
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.preference_losses import preference_loss
from trl_ziegler.reward_model import is_normalized, load_reward_model, score_token_ids
from trl_ziegler.reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer

LABELS = [
    {"prompt": " the cat was", "completions": [" good.", " bad.", " not very old."], "label": 0},
    {"prompt": " a dog saw it. the", "completions": [" house", " cold garden"], "label": 1},
    {"prompt": " she", "completions": [" loved it.", " hated it."], "label": 0},
    {"prompt": " they found the old house in", "completions": [" the dull garden.", " a bright house."], "label": 1},
] * 2
PROMPTS = [{"prompt": row["prompt"], "number": i} for i, row in enumerate(LABELS)]
COMMON = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-2}
FOREVER = {"lr_scheduler_type": "constant"}


@pytest.fixture(autouse=True)
def private_places(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start(tmp_path, tokenizer, make_causal_lm):
    """A folder with a tiny start model, and its `ModelConfig`."""
    make_causal_lm().save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return ModelConfig(model_name_or_path=str(tmp_path / "start"))


@pytest.fixture
def adapted(tmp_path, tokenizer, make_causal_lm):
    """The `ModelConfig` of a tiny Llama to be trained through an adapter."""
    make_causal_lm("llama").save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    return ModelConfig(model_name_or_path=str(tmp_path / "llama"), **lora)


@pytest.fixture
def write(tmp_path):
    def write_rows(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


@pytest.fixture
def function_of_rewards(tmp_path):
    """A module of the working directory with the reward function `letter_e`."""
    (tmp_path / "my_rewards.py").write_text(
        "def letter_e(prompts, completions, **columns):\n"
        "    assert len(columns['number']) == len(completions)\n"
        "    return [float(text.count('e')) for text in completions]\n"
        "letter_a = letter_e\n"
        "not_a_function = 3\n"
    )
    yield "my_rewards:letter_e"
    sys.modules.pop("my_rewards", None)


@pytest.fixture
def reward_job(tmp_path, start, write):
    """`reward_job(folder, **config fields)` trains on `LABELS`; fields of the script's own go into `script`."""
    labels = write("labels.jsonl", LABELS)

    def run(folder, script=None, model=start, **fields):
        arguments = {"dataset_name": labels, "normalization_samples": 8, "response_length": 6, "cpu_threads": 1}
        config = {**COMMON, "output_dir": str(tmp_path / folder), "per_device_train_batch_size": 4, **fields}
        train_reward_model(RewardScriptArguments(**arguments | (script or {})), BestOfKRewardConfig(**config), model)
        return tmp_path / folder

    return run


@pytest.fixture
def policy_job(tmp_path, start, write, function_of_rewards):
    """`policy_job(folder, **config fields)` trains on `PROMPTS`; fields of the script's own go into `script`."""
    prompts = write("prompts.jsonl", PROMPTS)

    def run(folder, script=None, model=start, **fields):
        arguments = {"dataset_name": prompts, "reward": function_of_rewards, "cpu_threads": 1}
        config = {
            **COMMON, "output_dir": str(tmp_path / folder), "per_device_train_batch_size": 4, "response_length": 5,
            "num_ppo_epochs": 2, "logging_steps": 1, **fields,
        }  # fmt: skip
        train_policy(PolicyScriptArguments(**arguments | (script or {})), ZieglerPPOConfig(**config), model)
        return tmp_path / folder

    return run


def interrupt_at(step, trainer_class, monkeypatch):
    """Let the `step`-th forward and backward pass (1-based) of `trainer_class` end in a Ctrl-C."""
    original, calls = trainer_class.training_step, []

    def training_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer_class, "training_step", training_step)
    return calls


def weights_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def scores_of(folder):
    return score_token_ids(load_reward_model(folder), [[300, 301], [302]], [[303], [304, 305]])


# ---- Reward models --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reward_model_is_trained_evaluated_normalised_and_saved(reward_job, write, capsys):
    held_out = write("held_out.jsonl", LABELS[:4])
    folder = reward_job("reward", {"eval_dataset_name": held_out}, max_steps=2, save_strategy="no")
    model = load_reward_model(folder)
    record = model.config.reward_normalization
    assert is_normalized(model)
    assert (record["n_samples"], record["target_mean"], record["target_std"]) == (8, 0.0, 1.0)
    out = capsys.readouterr().out.strip().splitlines()
    assert any("'eval_accuracy'" in line for line in out)
    assert out[-1] == f"Reward model: {folder}"
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.slow
def test_normalisation_can_be_left_out(reward_job, start, write):
    pairs = write("pairs.jsonl", [{"chosen": " she loved it.", "rejected": " she hated it."}] * 2)
    folder = reward_job("reward", {"dataset_name": pairs, "normalization_samples": 0}, max_steps=1)
    assert not is_normalized(load_reward_model(folder))


@pytest.mark.slow
def test_an_interrupted_reward_model_continues_to_the_weights_of_an_uninterrupted_one(reward_job, monkeypatch):
    whole = reward_job("whole", max_steps=4, **FOREVER)
    saving = {"max_steps": 4, "save_steps": 1, **FOREVER}
    with monkeypatch.context() as patch:
        interrupt_at(3, BestOfKRewardTrainer, patch)
        with pytest.raises(KeyboardInterrupt):
            reward_job("broken", **saving)
    with monkeypatch.context() as patch:
        calls = interrupt_at(99, BestOfKRewardTrainer, patch)
        broken = reward_job("broken", **saving)
    assert len(calls) == 2  # of four steps, the two that were still to be made
    torch.testing.assert_close(scores_of(broken), scores_of(whole), atol=0, rtol=0)


@pytest.mark.slow
def test_a_reward_model_goes_on_past_a_checkpoint_whose_writing_was_cut_off(reward_job, caplog):
    saving = {"max_steps": 2, "save_steps": 1, **FOREVER}
    whole = reward_job("reward", {"normalization_samples": 0}, **saving)
    scores = scores_of(whole)
    (whole / "checkpoint-2" / "trainer_state.json").unlink()
    torch.testing.assert_close(
        scores_of(reward_job("reward", {"normalization_samples": 0}, **saving)), scores, atol=0, rtol=0
    )
    assert "checkpoint-2 is ignored: it has no complete trainer_state.json" in caplog.text


@pytest.mark.slow
def test_a_reward_adapter_is_trained_normalised_and_loaded_again(reward_job, adapted):
    folder = reward_job("adapter", model=adapted, max_steps=1, save_strategy="no")
    assert (folder / "adapter_config.json").is_file()
    assert is_normalized(load_reward(str(folder)))


def test_labels_without_prompts_are_refused_before_training(reward_job, write, monkeypatch):
    monkeypatch.setattr(BestOfKRewardTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    pairs = write("pairs.jsonl", [{"chosen": " she loved it.", "rejected": " she hated it."}])
    with pytest.raises(ValueError, match=r"pairs.jsonl` has no `prompt` column .* `--normalization_samples 0`"):
        reward_job("reward", {"dataset_name": pairs})


@pytest.mark.parametrize(
    "option, sentence",
    [
        (
            {"response_length": 300},
            r"`response_length` is 300, which behind a prompt of \d+ tokens .* 256 that the start",
        ),
        ({"response_length": 0}, "`response_length` is 0; give at least 1 token"),
        ({"temperature": 0.0}, "`temperature` is 0.0; give a positive number"),
        ({"normalization_samples": 1}, "`normalization_samples` is 1; give at least 2"),
        ({"dataset_name": "one.jsonl"}, "`one.jsonl` has 1 record, over which no variance can be normalised"),
    ],
)
def test_a_normalisation_that_cannot_be_is_refused_before_training(reward_job, write, monkeypatch, option, sentence):
    write("one.jsonl", LABELS[:1])
    monkeypatch.setattr(BestOfKRewardTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=sentence):
        reward_job("reward", option)


def test_a_trained_model_outlives_a_normalisation_that_fails(reward_job, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(own_data, "normalize_reward_model", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        reward_job("reward", max_steps=1, save_strategy="no")
    assert not is_normalized(load_reward_model(tmp_path / "reward"))


# ---- Human ratings --------------------------------------------------------------------------------------------------

RATINGS = [
    {"prompt": f" the {noun} was", "completions": [" good.", " bad.", " cold.", " not very old."], "scores": scores}
    for noun, scores in zip(
        ["cat", "dog", "house", "garden", "cat", "old dog"],
        [[3, 1, 1, 2], [2, 2, 2, 2], [5, 5, 1, 4], [0.5, 0, 0, 0], [1, 2, 1, 1], [4, 2, 3, 1]],
        strict=True,
    )
]


def results_of(folder):
    return json.loads((folder / "eval_results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["pairwise", "scalar", "best_of_k"])
def test_held_out_ratings_are_measured_on_the_same_pairs_whatever_the_loss(reward_job, write, loss_type, capsys):
    train, held_out = write("train.jsonl", RATINGS[::-1]), write("held_out.jsonl", RATINGS)
    script = {"dataset_name": train, "eval_dataset_name": held_out, "normalization_samples": 0}
    folder = reward_job("reward", script, max_steps=1, save_strategy="no", loss_type=loss_type)
    results, model = results_of(folder), load_reward_model(folder)
    assert str(results["eval_pair_accuracy"]) in capsys.readouterr().out
    # 5, 0, 5, 3, 3 and 6 pairs of six records, of which the first and the fifth have the same prompt.
    assert (results["eval_pair_accuracy_pairs"], results["eval_pair_accuracy_prompts"]) == (22, 4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0.0
    for row in RATINGS:
        ids = [tokenizer(text)["input_ids"] for text in (row["prompt"], *row["completions"])]
        rewards = score_token_ids(model, [ids[0]] * 4, ids[1:])
        for i, j in itertools.permutations(range(4), 2):
            if row["scores"][i] > row["scores"][j]:
                right += float(rewards[i] > rewards[j])
    assert results["eval_pair_accuracy"] == pytest.approx(right / 22)
    assert results["eval_pair_accuracy_low"] <= right / 22 <= results["eval_pair_accuracy_high"]


@pytest.mark.slow
def test_a_share_of_the_prompts_is_held_out_and_never_trained_on(reward_job, write, monkeypatch):
    parts = []
    original = BestOfKRewardTrainer.train

    def train(self, **kwargs):
        parts.extend([self.train_dataset["prompt"][:], self.eval_dataset["prompt"][:]])
        return original(self, **kwargs)

    monkeypatch.setattr(BestOfKRewardTrainer, "train", train)
    script = {"eval_size": 0.5, "normalization_samples": 0}  # of four prompts, each in two rows
    folder = reward_job("reward", script, max_steps=1, save_strategy="no")
    assert [len(part) for part in parts] == [4, 4]
    assert not set(parts[0]) & set(parts[1])
    assert "eval_accuracy" in results_of(folder)
    assert not any("pair" in key for key in results_of(folder))  # labels are no ratings


@pytest.mark.parametrize("seed", range(5))
def test_rows_with_one_prompt_stay_on_one_side(seed):
    prompts = [*"abcabdcaee", [{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    for column, values in (("prompt", prompts[:10]), ("prompt", prompts[10:] * 3), ("prompt_ids", [[1], [2], [1, 2]])):
        rows = Dataset.from_dict({column: values, "number": range(len(values))})
        train, held_out = split_by_prompt(rows, 0.4, seed)
        sides = [{json.dumps(value) for value in side[column]} for side in (train, held_out)]
        distinct = {json.dumps(value) for value in values}
        assert sides[0] | sides[1] == distinct and not sides[0] & sides[1]
        assert len(sides[1]) == round(0.4 * len(distinct))
        assert sorted([*train["number"], *held_out["number"]]) == list(range(len(values)))


def test_the_split_depends_on_the_seed_alone():
    rows = Dataset.from_dict({"prompt": [str(i // 2) for i in range(40)]})
    halves = [split_by_prompt(rows, 0.5, seed)[1]["prompt"][:] for seed in (1, 1, 2)]
    assert halves[0] == halves[1] != halves[2]


@pytest.mark.parametrize(
    "loss_type, gradient",
    [
        ("best_of_k", [[-3 / 4, 1 / 4, 1 / 4, 1 / 4]]),  # of three records, the one with a single best
        # Five pairs and four, each a push of 1/2: the tied 2s of the first record lose one pair and win one.
        ("pairwise", [[-3 / 20, 0, 0, 3 / 20], [-1 / 8, -1 / 8, 1 / 8, 1 / 8]]),
        ("scalar", [[-8 / 12, -4 / 12, -4 / 12, -2 / 12], [-6 / 12, -6 / 12, -2 / 12, -2 / 12], [-4 / 12] * 4]),
    ],
)
def test_tied_candidates_give_no_pair_and_no_label_but_count_for_the_scalar_loss(
    tmp_path, tokenizer, make_classifier, loss_type, gradient
):
    ties = [[4, 2, 2, 1], [3, 3, 1, 1], [2, 2, 2, 2]]
    rows = Dataset.from_list([{**row, "scores": scores} for row, scores in zip(RATINGS, ties, strict=False)])
    args = BestOfKRewardConfig(str(tmp_path), loss_type=loss_type, use_cpu=True, report_to="none")
    trainer = BestOfKRewardTrainer(make_classifier(), args, train_dataset=rows, processing_class=tokenizer)
    (batch,) = trainer.get_eval_dataloader(trainer.train_dataset)  # in the order of the rows
    rewards = torch.zeros(batch["candidate_mask"].shape, requires_grad=True)
    preference_loss(loss_type, rewards, batch, batch["candidate_mask"]).backward()
    torch.testing.assert_close(rewards.grad, torch.tensor(gradient))


@pytest.mark.parametrize(
    "script, message",
    [
        ({"eval_size": 1.0}, "`eval_size` is 1.0; give a share of the prompts between 0 and 1"),
        (
            {"eval_size": 0.2, "eval_dataset_name": "x.jsonl"},
            "`eval_size` is 0.2 and `eval_dataset_name` is 'x.jsonl'",
        ),
        ({"eval_size": 0.1}, "`eval_size` is 0.1, which holds out 0 of 4 prompts and leaves a side empty"),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused(reward_job, script, message):
    with pytest.raises(ValueError, match=message):
        reward_job("never", script)


def test_labels_without_prompts_cannot_be_split(reward_job, write):
    pairs = write("pairs.jsonl", [{"chosen": " she loved it.", "rejected": " she hated it."}] * 2)
    with pytest.raises(ValueError, match=r"have no `prompt` to split by, only \['chosen', 'rejected'\]"):
        reward_job("never", {"dataset_name": pairs, "eval_size": 0.5, "normalization_samples": 0})


def test_held_out_ratings_without_a_pair_are_refused_before_training(reward_job, write, monkeypatch):
    monkeypatch.setattr(BestOfKRewardTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    script = {"dataset_name": write("train.jsonl", RATINGS), "eval_dataset_name": write("tied.jsonl", RATINGS[1:2])}
    with pytest.raises(ValueError, match="The 1 held-out records have the same `scores` throughout"):
        reward_job("never", script, loss_type="scalar")


def test_a_column_of_scores_beside_the_labels_in_use_is_left_alone(tokenizer, start):
    args = BestOfKRewardConfig("never", use_cpu=True, report_to="none")
    beside = [{**LABELS[2], "scores": [None, None]}], [{"chosen": " a", "rejected": " b", "scores": [1, 2]}]
    for rows in beside:
        assert _rated(Dataset.from_list(rows), tokenizer, args) is None


# ---- Policies -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_policy_is_trained_on_a_function_of_ones_own_and_saved(policy_job, start, capsys):
    folder = policy_job("policy", max_steps=2, save_strategy="no")
    before, after = weights_of(start.model_name_or_path), weights_of(folder)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"Policy: {folder}"
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_policy_is_trained_on_the_reward_model_of_the_other_script(reward_job, policy_job):
    reward = reward_job("reward", max_steps=1, save_strategy="no")
    folder = policy_job("policy", {"reward": str(reward)}, max_steps=1, save_strategy="no")
    assert (folder / "model.safetensors").is_file()
    origin = "those of `labels.jsonl`"
    assert f"- Labels: {origin}." in (reward / "README.md").read_text()
    assert f"- `reward`, weight 1: a reward model; its labels: {origin}." in (folder / "README.md").read_text()


@pytest.mark.slow
def test_an_interrupted_policy_continues_to_the_weights_of_an_uninterrupted_one(policy_job, monkeypatch):
    whole = policy_job("whole", max_steps=3, **FOREVER)
    saving = {"max_steps": 3, "save_steps": 1, **FOREVER}
    with monkeypatch.context() as patch:
        interrupt_at(4, ZieglerPPOTrainer, patch)  # in the middle of the second of three updates of two steps
        with pytest.raises(KeyboardInterrupt):
            policy_job("broken", **saving)
    with monkeypatch.context() as patch:
        calls = interrupt_at(99, ZieglerPPOTrainer, patch)
        broken = policy_job("broken", **saving)
    assert len(calls) == 4  # the second and third update
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(weights_of(broken)[name], weight, atol=0, rtol=0)


@pytest.mark.slow
def test_a_policy_adapter_is_trained_and_saved(policy_job, adapted):
    folder = policy_job("adapter", model=adapted, max_steps=1, save_strategy="no")
    assert (folder / "adapter_config.json").is_file()


# ---- The same folder again ------------------------------------------------------------------------------------------

ONE_STEP = {"max_steps": 1, "save_steps": 1, **FOREVER}


@pytest.mark.slow
@pytest.mark.parametrize("job", ["reward_job", "policy_job"])
def test_a_finished_run_is_not_taken_for_one_with_other_settings(request, job, write):
    run = request.getfixturevalue(job)
    folder = run("same", **ONE_STEP)
    saved = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    data = "labels.jsonl" if job == "reward_job" else "prompts.jsonl"
    changes = [
        ({"learning_rate": 3e-2}, r"same .*: `learning_rate` was 0.01 and is 0.03.* another `output_dir`"),
        ({"model": ModelConfig(model_name_or_path="start", use_peft=True)}, "`use_peft` was False and is True"),
        (
            {"script": {"dataset_name": write("other.jsonl", LABELS[:3])}},
            "`dataset_name` was '.*' and is '.*other.jsonl'",
        ),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            run("same", **{**ONE_STEP, **change})
    write(data, [{**row, "number": 0} for row in LABELS[:6]])
    with pytest.raises(ValueError, match=rf"`dataset_name` is '.*{data}' as before, but its content has changed"):
        run("same", **ONE_STEP)
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == saved


@pytest.mark.slow
def test_a_policy_of_another_reward_is_not_taken_for_this_ones(policy_job, reward_job):
    policy_job("same", **ONE_STEP)
    with pytest.raises(ValueError, match="`reward` was 'my_rewards:letter_e' and is 'my_rewards:letter_a'"):
        policy_job("same", {"reward": "my_rewards:letter_a"}, **ONE_STEP)
    model = reward_job("reward", {"normalization_samples": 4}, max_steps=1, save_strategy="no")
    policy_job("modelled", {"reward": str(model)}, **ONE_STEP)
    reward_job("reward", {"normalization_samples": 6}, max_steps=2, save_strategy="no")
    with pytest.raises(ValueError, match=r"`reward` is '.*reward' as before, but its content has changed"):
        policy_job("modelled", {"reward": str(model)}, **ONE_STEP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "trainer", "one"), [("reward_job", BestOfKRewardTrainer, 1), ("policy_job", ZieglerPPOTrainer, 2)]
)
def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(request, job, trainer, one, monkeypatch):
    run = request.getfixturevalue(job)
    run("same", **ONE_STEP)
    with monkeypatch.context() as patch:
        calls = interrupt_at(99, trainer, patch)
        run("same", **{**ONE_STEP, "max_steps": 3, "logging_steps": 2, "report_to": []})
        assert len(calls) == 2 * one
    with pytest.raises(ValueError, match=rf"same has been trained for {3 * one} .* more than the {2 * one} of these"):
        run("same", **{**ONE_STEP, "max_steps": 2})


@pytest.mark.slow
def test_another_setting_is_allowed_where_no_checkpoint_is_or_the_checkpoint_is_named(policy_job):
    folder = policy_job("same", max_steps=1, save_strategy="no")
    policy_job("same", **ONE_STEP, kl_coef=0.2)
    named = str(folder / "checkpoint-2")
    policy_job("same", **{**ONE_STEP, "max_steps": 2}, kl_coef=0.3, resume_from_checkpoint=named)
    with pytest.raises(ValueError, match=r"`kl_coef` was 0\.3 and is 0\.2"):
        policy_job("same", **ONE_STEP, kl_coef=0.2)


# ---- What is refused ------------------------------------------------------------------------------------------------


def test_a_reward_is_a_model_or_a_function(function_of_rewards, make_classifier, tmp_path):
    assert load_reward(function_of_rewards)(["a"], ["eel"], number=[1]) == [2.0]
    make_classifier().save_pretrained(tmp_path / "classifier")
    assert load_reward(str(tmp_path / "classifier")).config.num_labels == 1


def test_a_reward_without_a_head_is_refused(start):
    with pytest.raises(ValueError, match="start is a language model without a reward head; train one with recipes/"):
        load_reward(start.model_name_or_path)


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_rewards:letter_z", "the module my_rewards has no function 'letter_z'"),
        ("my_rewards:not_a_function", "the module my_rewards has no function 'not_a_function'"),
        ("no_such_module:f", "there is no module no_such_module; give `module:function`"),
        ("my_rewards.deeper:f", "there is no module my_rewards.deeper"),
    ],
)
def test_a_reward_that_is_no_function_is_named(function_of_rewards, name, message):
    with pytest.raises(ValueError, match=f"`reward` is '{name}', but {message}"):
        load_reward(name)


def test_a_reward_that_is_neither_model_nor_function_is_told_both_ways(function_of_rewards):
    with pytest.raises(ValueError, match=r"`reward` is 'letter_e', which is no folder .* `module:function`"):
        load_reward("letter_e")


def test_a_dot_for_the_colon_of_a_function_is_told_before_the_hub_is_asked(function_of_rewards, monkeypatch):
    monkeypatch.setattr(own_data, "load_reward_model", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ValueError, match=r"a function is given as `module:function`: 'my_rewards:letter_e'"):
        load_reward("my_rewards.letter_e")


def test_what_a_module_itself_lacks_is_not_taken_for_the_module(tmp_path):
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_reward("needs_more:f")


@pytest.mark.parametrize("job", ["reward_job", "policy_job"])
@pytest.mark.parametrize(
    "option, value",
    [("dtype", "bfloat16"), ("load_in_4bit", True), ("model_revision", "v2"), ("attn_implementation", "x")],
)
def test_model_options_that_nothing_reads_are_refused_by_name(request, start, job, option, value):
    model = ModelConfig(model_name_or_path=start.model_name_or_path, **{option: value})
    with pytest.raises(ValueError, match=f"`{option}` is {value!r}, which this script does not use"):
        request.getfixturevalue(job)("never", model=model)


@pytest.mark.parametrize("job", ["reward_job", "policy_job"])
@pytest.mark.parametrize(
    "option, value",
    [("lora_r", 8), ("lora_target_modules", ["q_proj", "v_proj"]), ("use_dora", True), ("use_rslora", True)],
)
def test_options_of_an_adapter_without_one_are_refused_by_name(request, start, job, option, value):
    model = ModelConfig(model_name_or_path=start.model_name_or_path, **{option: value})
    with pytest.raises(ValueError, match=rf"`{option}` is {re.escape(repr(value))} without `use_peft`, and the whole"):
        request.getfixturevalue(job)("never", model=model)


def test_a_missing_model_is_named(reward_job):
    with pytest.raises(ValueError, match="`model_name_or_path` is missing"):
        reward_job("never", model=ModelConfig())
