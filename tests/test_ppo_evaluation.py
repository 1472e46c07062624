"""Evaluation of PPO on held-out prompts: metrics, win rate against the reference, best model, early stop."""

import json

import pytest
import torch
from launches import launched, several_processes
from peft import LoraConfig
from ppo_parts import favour, prompts
from ppo_runs import PROMPTS, assert_same_weights, letter_e, training_logs
from transformers import EarlyStoppingCallback, TrainerCallback

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.metrics import WinRate
from trl_ziegler.ppo_evaluation import wins
from trl_ziegler.tasks import Task

pytest_plugins = "ppo_fixtures"


class Recorder:
    """`letter_e` that keeps what it is asked, in order: `(number, completion, score)`."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, completions, number, **columns):
        scores = letter_e(prompts, completions)
        self.asked += list(zip(number, completions, scores, strict=True))
        return scores

    def take(self):
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def evaluated(make_ppo, make_causal_lm, recorder):
    """`evaluated(**arguments)`: a trainer whose policy differs from its reference, with 12 prompts in batches of 5."""

    def make(**given):
        options = {
            "reward_model": recorder,
            "ref_model": make_causal_lm(seed=1),
            "eval_dataset": prompts(12),
            "per_device_eval_batch_size": 5,
        }
        return make_ppo(**{**options, **given})

    return make


def scores(asked) -> list[float]:
    return [score for _, _, score in asked]


def test_wins_count_ties_half_as_the_metric_does():
    ours, theirs = torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.ones(4)
    assert wins(ours, theirs).tolist() == [1, 0.5, 0, 1]
    metric = WinRate().compute(predictions=ours.tolist(), references=theirs.tolist())
    assert wins(ours, theirs).mean() == metric["value"] == 0.625


def test_every_prompt_is_answered_once_by_each_model_and_compared_with_itself(evaluated, recorder):
    metrics = evaluated().evaluate()
    asked = recorder.take()
    assert [number for number, _, _ in asked] == [*range(12), *range(12)]
    theirs, ours = asked[:12], asked[12:]
    assert metrics["eval_objective/scores"] == pytest.approx(sum(scores(ours)) / 12)
    win = WinRate().compute(predictions=scores(ours), references=scores(theirs))
    assert 0 < win["ties"] < 12
    assert metrics["eval_win_rate"] == pytest.approx(win["value"])
    assert metrics["eval_objective/kl"] > 0.01


def test_share_of_valid_responses_and_their_scores(evaluated, make_causal_lm, tokenizer, recorder):
    stop = tokenizer(".")["input_ids"][0]
    task = Task("t", 6, truncate_token=".", truncate_after=1, penalty=-1.0)
    metrics = evaluated(model=favour(make_causal_lm(), stop, 4.0), task=task).evaluate()
    ours = recorder.take()[12:]
    valid = sum(completion.endswith(".") for _, completion, _ in ours)
    assert 0 < valid < 12
    assert metrics["eval_objective/valid_share"] == pytest.approx(valid / 12)
    penalised = [score if completion.endswith(".") else -1.0 for _, completion, score in ours]
    assert metrics["eval_objective/scores"] == pytest.approx(sum(penalised) / 12)


@pytest.mark.parametrize(("by", "length"), [(20.0, 2), (-20.0, 6)])
def test_length_is_that_of_the_cut_response(evaluated, make_causal_lm, tokenizer, by, length):
    model = favour(make_causal_lm(), tokenizer(".")["input_ids"][0], by)
    metrics = evaluated(model=model, task=Task("t", 6, truncate_token=".", truncate_after=1)).evaluate()
    assert metrics["eval_objective/response_length"] == length


def test_reference_answers_once_per_set_and_later_evaluations_are_comparable(evaluated, recorder):
    sets = {"a": prompts(4), "b": prompts(7)}
    trainer = evaluated(eval_dataset=sets)
    first = trainer.evaluate()
    assert len(recorder.take()) == 2 * (4 + 7)
    second = trainer.evaluate()
    assert len(recorder.take()) == 4 + 7
    for name in ("eval_a_win_rate", "eval_b_win_rate", "eval_a_objective/scores", "eval_b_objective/kl"):
        assert first[name] == second[name], name
    trainer.evaluate(prompts(3))
    assert len(recorder.take()) == 2 * 3


def test_a_changed_reward_is_applied_to_the_reference_after_it_is_forgotten(evaluated):
    factor = [1.0]

    def scaled(prompts, completions, **columns):
        return [factor[0] * score - 1 for score in letter_e(prompts, completions)]

    trainer = evaluated(reward_model=scaled)
    before = trainer.evaluate()["eval_win_rate"]
    factor[0] = 0.0  # every response now scores -1
    trainer.forget_reference_scores()
    assert before != 0.5
    assert trainer.evaluate()["eval_win_rate"] == 0.5


def test_reference_draws_its_own_responses(evaluated, recorder):
    metrics = evaluated(ref_model=None).evaluate()  # policy and reference are equal, their samples are not
    asked = recorder.take()
    assert [text for _, text, _ in asked[:12]] != [text for _, text, _ in asked[12:]]
    assert metrics["eval_objective/kl"] == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def greedy(model, tokenizer, text: str, length: int) -> str:
    ids = tokenizer(text)["input_ids"]
    for _ in range(length):
        ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[-length:], skip_special_tokens=True)


@pytest.mark.parametrize("regime", ["fixed", "eos"])
def test_reference_is_sampled_as_the_task_says(evaluated, recorder, make_causal_lm, tokenizer, regime):
    task = Task("t", 5, regime=regime, temperature=1e-4, truncate_token="eos" if regime == "eos" else None)
    evaluated(task=task, eval_dataset=prompts(4), local_rollout_forward_batch_size=3).evaluate()
    expected = [greedy(make_causal_lm(seed=1), tokenizer, text, 5) for text in PROMPTS]
    assert [text for _, text, _ in recorder.take()[:4]] == expected


def test_reference_by_switched_off_adapters_answers_like_its_own_model(evaluated, recorder, make_causal_lm):
    evaluated(ref_model=make_causal_lm()).evaluate()
    expected = recorder.take()
    trainer = evaluated(ref_model=None, peft_config=LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True))
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trainer.evaluate()
    asked = recorder.take()
    assert asked[:12] == expected[:12]
    assert asked[12:] != expected[12:]


class Watch(TrainerCallback):
    def __init__(self):
        self.batches, self.modes = [], []

    def on_prediction_step(self, args, state, control, eval_dataloader=None, model=None, **kwargs):
        self.batches.append(len(eval_dataloader))  # what the progress bar asks for

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.modes.append(model.training)


def test_evaluation_within_training_leaves_the_run_and_the_models_mode_alone(make_ppo):
    def run(watch=None, **given):
        trainer = make_ppo(
            peft_config=LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True), gradient_checkpointing=True,
            callbacks=[watch] if watch else None, **given,
        )  # fmt: skip
        trainer.train()
        return trainer

    watch = Watch()
    evaluated = run(watch, eval_strategy="steps", eval_steps=1, eval_dataset=prompts(5), per_device_eval_batch_size=2)
    assert_same_weights(run(), evaluated)
    assert watch.batches == [3] * 9  # three evaluations of three batches
    assert watch.modes == [True] * 3


def test_prompts_are_read_in_the_order_in_which_the_references_scores_are_kept(evaluated, recorder):
    trainer = evaluated()
    trainer.evaluate()
    assert [number for number, _, _ in recorder.take()] == [*range(12), *range(12)]


def test_evaluation_can_start_the_run(make_ppo):
    trainer = make_ppo(eval_on_start=True, eval_strategy="steps", eval_steps=2, eval_dataset=prompts(5), max_steps=2)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "eval_win_rate" in row]
    assert [row["step"] for row in logs] == [0, 4]
    assert logs[0]["eval_objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(logs[1]["eval_objective/kl"]) > 1e-3


def signed(prompts, completions, sign, **columns):
    """Training can only raise the score of sets whose sign is +1, and lowers that of the others."""
    return [s * score for s, score in zip(sign, letter_e(prompts, completions), strict=True)]


def signed_prompts(sign: float, n: int = 12):
    return prompts(n).add_column("sign", [sign] * n)


@pytest.fixture
def train_signed(make_ppo):
    """`train_signed(**arguments)`: a run that raises the score of the set `up` and lowers that of `down`."""

    def run(**given):
        options = {
            "reward_model": signed,
            "train_dataset": signed_prompts(1.0),
            "eval_dataset": {"down": signed_prompts(-1.0), "up": signed_prompts(1.0)},
            "per_device_train_batch_size": 12,
            "max_steps": 8,
            "num_mini_batches": 2,
            "learning_rate": 3e-2,
            "lr_scheduler_type": "constant",
            "kl_coef": 0.0,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
        }
        trainer = make_ppo(**{**options, **given})
        trainer.train()
        return trainer

    return run


def history(trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("name", ["down", "up"])
def test_best_model_of_one_of_two_sets_is_loaded_at_the_end(train_signed, name):
    metric = f"eval_{name}_objective/scores"
    trainer = train_signed(metric_for_best_model=metric)
    values = history(trainer, metric)
    best = values.index(max(values)) + 1
    assert trainer.state.best_global_step == best * trainer.plan.steps_per_update
    assert (best < 4) == (name == "down")
    saved = ActorCritic.from_pretrained(trainer.state.best_model_checkpoint)
    for key, weight in saved.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[key]), key
    assert trainer.evaluate()[metric] == pytest.approx(trainer.state.best_metric) == pytest.approx(max(values))


def test_only_the_best_is_saved_when_asked(train_signed, tmp_path):
    trainer = train_signed(
        eval_dataset=signed_prompts(-1.0), metric_for_best_model="objective/scores", save_strategy="best", max_steps=4
    )
    values = history(trainer, "eval_objective/scores")
    records = {i + 1 for i, value in enumerate(values) if value == max(values[: i + 1])}
    saved = {int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")}
    assert saved == {update * trainer.plan.steps_per_update for update in records}
    assert len(records) < 4


def test_early_stopping_stops_at_the_end_of_an_update(train_signed):
    trainer = train_signed(
        eval_dataset=signed_prompts(-1.0),
        metric_for_best_model="eval_objective/scores",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    values = history(trainer, "eval_objective/scores")
    assert len(values) < 8
    assert max(values[-2:]) <= max(values[:-2])
    assert trainer.state.global_step == len(values) * trainer.plan.steps_per_update
    assert len(training_logs(trainer)) == len(values)
    assert trainer.evaluate()["eval_objective/scores"] == pytest.approx(max(values))


def test_predict_reports_the_metrics_of_a_test_set(evaluated):
    trainer = evaluated()
    result = trainer.predict(prompts(7))
    evaluation = trainer.evaluate(prompts(7))
    assert result.metrics["test_objective/scores"] == evaluation["eval_objective/scores"]
    assert result.metrics["test_win_rate"] == evaluation["eval_win_rate"]


def test_sets_that_cannot_be_evaluated_are_refused(make_ppo):
    with pytest.raises(ValueError, match=r"`eval_dataset\['b'\]` has no rows"):
        make_ppo(eval_dataset={"a": prompts(2), "b": prompts(2).select([])})
    with pytest.raises(ValueError, match="`eval_dataset` is a IterableDataset; give a"):
        make_ppo(eval_dataset=prompts(2).to_iterable_dataset())


@pytest.mark.slow
@pytest.mark.parametrize("rows", [5, 13, 16])
def test_two_processes_evaluate_every_prompt_once(make_causal_lm, tokenizer, tmp_path, rows):
    for seed, name in enumerate(("policy", "reference")):
        make_causal_lm(seed=seed).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "policy")
    launched(*several_processes(), "tests/ddp_scripts/evaluate_prompts.py", str(tmp_path), str(rows))
    result = json.loads((tmp_path / "result.json").read_text())
    # The n-th answer of each model to a prompt, in the order of set, batch and process; fillers of the last batch
    # come after the prompts they repeat.
    answers = {model: {} for model in ("reference", "policy")}
    for model, number, score in result["asked"]:
        answers[model].setdefault(number, score)
    theirs, ours = ([answers[model][i] for i in range(rows)] for model in ("reference", "policy"))
    assert result["metrics"]["eval_objective/scores"] == pytest.approx(sum(ours) / rows, abs=1e-5)
    win = WinRate().compute(predictions=ours, references=theirs)["value"]
    assert result["metrics"]["eval_win_rate"] == pytest.approx(win, abs=1e-5)
    assert result["metrics"]["eval_rewards/power"] == pytest.approx((2**rows - 1) / rows)
    assert result["again"] == pytest.approx(win, abs=1e-5)
    assert sorted(result["table"]) == sorted(PROMPTS[i % 4] for i in range(rows))
