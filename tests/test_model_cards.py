"""The trainers' model cards, and what reaches the hub; a fake in the place of the hub's client."""

import re
import shutil
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig
from ppo_parts import prompts
from ppo_runs import letter_e
from reward_records import records

from trl_ziegler import ActorCritic, Task, __version__, load_reward_model, normalize_reward_model

pytest_plugins = ("ppo_fixtures", "reward_fixtures")

HUB = "https://huggingface.co"
PAPER = "[Fine-Tuning Language Models from Human Preferences](https://huggingface.co/papers/1909.08593)"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder that the client's `create_repo` and `upload_folder` write to, as the hub would keep it."""
    place = tmp_path / "hub"

    def create_repo(self, repo_id, *, token=None, private=None, exist_ok=False):
        repo = repo_id if "/" in repo_id else f"someone/{repo_id}"
        (place / repo).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo)

    def upload_folder(
        self, *, repo_id, folder_path, commit_message, token=None, revision=None, run_as_future=False,
        path_in_repo="", ignore_patterns=(),
    ):  # fmt: skip
        def ignored(folder, names):
            return [name for name in names if any(fnmatch(name, pattern) for pattern in ignore_patterns)]

        shutil.copytree(folder_path, place / repo_id / path_in_repo, ignore=ignored, dirs_exist_ok=True)
        done: Future = Future()
        done.set_result(f"{HUB}/{repo_id}")
        return done if run_as_future else done.result()

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return place


def card_of(trainer) -> ModelCard:
    return ModelCard.load(Path(trainer.args.output_dir, "README.md"))


def section(card: ModelCard, title: str) -> str:
    return re.search(rf"^#+ {title}\n\n(.*?)(?=^#+ |\Z)", card.text, flags=re.DOTALL | re.MULTILINE)[1]


def run_quick_start(card: ModelCard) -> dict:
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", section(card, "Quick start"), flags=re.DOTALL):
        exec(block, namespace)
    return namespace


def test_card_of_a_policy_says_reward_settings_and_results(train, make_reward_model):
    reward_model = make_reward_model()
    reward_model.config._name_or_path = "someone/taste"
    reward_model.config.label_origin = "three friends"
    normalize_reward_model(reward_model, [[1, 2], [3]], [[4], [5, 6]])
    trainer = train(
        reward_model=[reward_model, letter_e],
        reward_weights=[1.0, 0.0],
        evaluate_with=prompts(4),
        eval_strategy="steps",
        eval_steps=1,
        kl_coef=0.1,
        kl_target=2.0,
    )
    trainer.create_model_card()
    card = card_of(trainer)
    assert section(card, "Reward") == (
        "- `taste`, weight 1: a reward model; its labels: three friends.\n"
        "- `letter_e`, weight 0 (only logged): a function.\n\n"
    )
    beta = trainer.kl_controller.value
    assert section(card, "Settings") == (
        "- Responses: 6 tokens at most, sampled at temperature 0.7.\n"
        f"- KL coefficient beta: {beta:.4g}, adapted towards 2 nats.\n"
        "- Episodes: 12.\n\n"
    )
    held_out = [row for row in trainer.state.log_history if "eval_win_rate" in row][-1]
    last = [row for row in trainer.state.log_history if "loss" in row][-1]
    assert section(card, "Results").splitlines()[2:4] == [
        f"| held-out prompts | {held_out['eval_objective/kl']:.3f} | {held_out['eval_objective/scores']:.3f} | "
        f"{held_out['eval_win_rate']:.3f} |",
        f"| training prompts | {last['objective/kl']:.3f} | {last['objective/scores']:.3f} | – |",
    ]


def test_card_keeps_what_trl_writes(train):
    trainer = train()
    trainer.model.config._name_or_path = "someone/start"
    trainer.create_model_card(model_name="ours", dataset_name="someone/prompts", tags="style")
    card = card_of(trainer)
    assert card.data.base_model == "someone/start" and card.data.datasets == "someone/prompts"
    assert {"trl", "ppo", "trl-ziegler", "style"} <= set(card.data.tags)
    assert card.text.startswith("\n# Model Card for ours\n\nThis model is a fine-tuned version of [someone/start]")
    assert f"a method introduced in {PAPER}" in section(card, "Training procedure")
    assert section(card, "Framework versions").startswith(f"- trl_ziegler: {__version__}\n- TRL: ")
    assert "ziegler2019" in section(card, "Citations") and "time machine" not in card.text


def test_card_of_a_model_without_a_home_on_the_hub_does_not_link_to_none(train):
    trainer = train(start=False)
    trainer.create_model_card()
    text = card_of(trainer).text
    assert "None" not in text
    assert "This model is a fine-tuned version of a model that is not on the Hugging Face hub." in text
    assert section(card_of(trainer), "Results") == "Nothing was measured yet.\n\n"


@pytest.mark.parametrize("value_init", ["zero", "reward"])
def test_policy_loads_as_its_card_says(train, make_reward_model, value_init):
    reward_model = make_reward_model()
    normalize_reward_model(reward_model, [[1, 2], [3]], [[4], [5, 6]])
    trainer = train(max_steps=1, reward_model=reward_model, value_init=value_init)
    trainer.save_model()
    trainer.create_model_card()
    loaded = run_quick_start(card_of(trainer))
    assert loaded["sampling"] == {"do_sample": True, "temperature": 0.7, "top_k": 0, "max_new_tokens": 6}
    ours = trainer.model.state_dict()
    assert all(value.equal(ours[name]) for name, value in loaded["actor_critic"].state_dict().items())


def test_sets_of_a_dictionary_get_a_row_each(train):
    held_out = {"short": prompts(2), "long": prompts(4)}
    trainer = train(max_steps=1, evaluate_with=held_out)
    trainer.evaluate()
    trainer.create_model_card()
    rows = section(card_of(trainer), "Results").splitlines()[2:5]
    assert [row.split(" |")[0] for row in rows] == [
        "| held-out prompts (short)", "| held-out prompts (long)", "| training prompts"
    ]  # fmt: skip


def test_results_are_those_of_the_best_model_once_it_is_loaded(train):
    trainer = train(
        evaluate_with=prompts(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="objective/kl",
        greater_is_better=False,
    )
    evaluations = [row for row in trainer.state.log_history if "eval_win_rate" in row]
    best = min(evaluations, key=lambda row: row["eval_objective/kl"])
    assert best is not evaluations[-1]
    trainer.create_model_card()
    results = section(card_of(trainer), "Results")
    assert f"| held-out prompts | {best['eval_objective/kl']:.3f} |" in results and "training" not in results
    trainer.args.load_best_model_at_end = False
    trainer.train()
    trainer.create_model_card()
    last = [row for row in trainer.state.log_history if "eval_win_rate" in row][-1]
    assert f"| held-out prompts | {last['eval_objective/kl']:.3f} |" in section(card_of(trainer), "Results")


def test_card_of_a_reward_model_says_labels_and_accuracy(make_trainer):
    trainer = make_trainer(records(8), eval_dataset=records(4, seed=1), label_origin="two authors")
    trainer.train()
    trainer.create_model_card()
    card = card_of(trainer)
    assert section(card, "Labels").startswith("- Labels: two authors.\n- 8 records, each with ")
    assert "- It was not evaluated on held-out labels.\n- Scale: the rewards are not normalised." in card.text
    metrics = trainer.evaluate()
    normalize_reward_model(trainer.model, [[1, 2], [3]], [[4], [5, 6]])
    trainer.create_model_card()
    assert section(card_of(trainer), "Results") == (
        f"- Held-out labels: accuracy {metrics['eval_accuracy']:.3f}, guessing {metrics['eval_chance']:.3f}; margin "
        f"{metrics['eval_margin']:.3f}.\n"
        "- Scale: mean 0 and standard deviation 1 over 2 samples (`reference_samples`).\n\n"
    )
    assert PAPER in card.text


def card_in(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_a_saved_reward_model_has_its_card_beside_it_with_all_that_is_known(make_trainer, tmp_path):
    trainer = make_trainer(records(8), eval_dataset=records(4, seed=1), eval_strategy="epoch", save_strategy="steps")
    trainer.train()
    normalize_reward_model(trainer.model, [[1, 2], [3]], [[4], [5, 6]])
    trainer.save_model(str(tmp_path / "out" / "final"))
    card = card_in(tmp_path / "out" / "final")
    assert f'load_reward_model("{tmp_path / "out" / "final"}")' in card.text
    assert "- Held-out labels: accuracy " in card.text and "- Scale: mean 0 and standard deviation 1 " in card.text
    assert "\n# Model Card for out\n" in card.text  # the run's name, not that of a folder within it
    assert run_quick_start(card)["reward_model"].score.weight.equal(
        trainer.model.score.weight * trainer.model.score.gain
    )
    checkpoint = tmp_path / "out" / f"checkpoint-{trainer.state.global_step}"
    assert f'load_reward_model("{checkpoint}")' in card_in(checkpoint).text
    assert not (tmp_path / "out" / "README.md").exists()  # where no model lies
    assert trainer.args.output_dir == str(tmp_path / "out")


def test_a_saved_policy_has_its_card_beside_it(train, tmp_path):
    trainer = train(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.save_model(str(tmp_path / "final"))
    loaded = run_quick_start(card_in(tmp_path / "final"))
    assert loaded["actor_critic"].value_head.weight.equal(trainer.model.value_head.weight)
    assert f'"{tmp_path / "final"}"' in card_in(tmp_path / "final").text
    assert not Path(trainer.args.output_dir, "README.md").exists()


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_saved_adapter_has_our_card_and_not_pefts(train, make_trainer, make_causal_lm, tmp_path, kind):
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    if kind == "policy":
        trainer = train(max_steps=1, peft_config=config)
    else:
        make_causal_lm().save_pretrained(tmp_path / "base")
        trainer = make_trainer(records(4), model=str(tmp_path / "base"), peft_config=config)
    trainer.save_model(str(tmp_path / "final"))
    assert f"- trl_ziegler: {__version__}\n" in card_in(tmp_path / "final").text


def test_a_saved_model_that_goes_to_the_hub_is_loaded_from_there(make_trainer, hub, tmp_path):
    trainer = make_trainer(records(4), hub_model_id="someone/taste", push_to_hub=True)
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / "out", hub / "someone" / "taste"):
        assert 'load_reward_model("someone/taste")' in card_in(folder).text


def test_cards_have_no_gaps_and_a_citation_to_copy(make_trainer):
    trainer = make_trainer(records(4))
    trainer.create_model_card()
    text = card_of(trainer).text
    assert "## Training procedure\n\nThis model was trained with" in text
    assert "\n@article{ziegler2019finetuning,\n  title " in text


def test_candidates_are_counted_once_for_all_cards(make_trainer, monkeypatch):
    trainer = make_trainer(records(4), save_strategy="steps", save_steps=1, per_device_train_batch_size=1)
    walks, look = [], Dataset.__getitem__

    def note(self, key):
        walks.append(key)
        return look(self, key)

    monkeypatch.setattr(Dataset, "__getitem__", note)
    trainer.train()
    trainer.create_model_card()
    trainer.create_model_card()
    assert walks.count("completion_ids") == 1
    assert "- 4 records, each with 4 candidates." in card_of(trainer).text
    trainer.train_dataset = records(3, k=2)
    trainer.create_model_card()
    assert "- 3 records, each with 2 candidates." in card_of(trainer).text


def test_reward_model_loads_as_its_card_says(make_trainer):
    trainer = make_trainer(records(4))
    trainer.save_model()
    trainer.create_model_card()
    loaded = run_quick_start(card_of(trainer))["reward_model"]
    assert loaded.score.weight.equal(trainer.model.score.weight)


@pytest.mark.parametrize("peft", [False, True])
def test_labels_origin_travels_with_the_reward_model(make_trainer, make_causal_lm, tmp_path, peft):
    make_causal_lm().save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="SEQ_CLS") if peft else None
    model = load_reward_model(tmp_path / "base")
    trainer = make_trainer(records(4), model=model, peft_config=config, label_origin="two authors")
    trainer.save_model()
    assert load_reward_model(trainer.args.output_dir).config.label_origin == "two authors"


def test_push_to_hub_brings_a_policy_its_value_function_and_its_card(train, hub):
    trainer = train(max_steps=1, hub_model_id="someone/policy")
    trainer.push_to_hub(dataset_name="someone/prompts")
    repo = hub / "someone" / "policy"
    assert ActorCritic.from_pretrained(repo).value_head.weight.equal(trainer.model.value_head.weight)
    card = ModelCard.load(repo / "README.md")
    assert card.data.datasets == "someone/prompts" and card.text.startswith("\n# Model Card for policy\n")
    quick_start = section(card, "Quick start")
    assert 'AutoModelForCausalLM.from_pretrained("someone/policy")' in quick_start
    assert 'ActorCritic.from_pretrained(snapshot_download("someone/policy"))' in quick_start


def test_push_to_hub_brings_a_reward_model_its_card(make_trainer, hub):
    trainer = make_trainer(records(4), hub_model_id="someone/taste")
    trainer.push_to_hub()
    repo = hub / "someone" / "taste"
    assert load_reward_model(repo).score.weight.equal(trainer.model.score.weight)
    assert 'load_reward_model("someone/taste")' in ModelCard.load(repo / "README.md").text


@pytest.mark.parametrize("value_init", ["zero", "reward"])
def test_what_is_pushed_while_training_is_one_model(train, make_reward_model, hub, monkeypatch, value_init):
    """Value function and policy of the same update; the library copies only the files it knows."""
    seen = []
    upload = HfApi.upload_folder

    def watched(self, *, folder_path, **options):
        if "Training in progress" in options["commit_message"]:
            trained = ActorCritic.from_pretrained(folder_path).state_dict()
            seen.append({name: value.clone() for name, value in trained.items()})
        return upload(self, folder_path=folder_path, **options)

    monkeypatch.setattr(HfApi, "upload_folder", watched)
    reward_model = make_reward_model()
    normalize_reward_model(reward_model, [[1, 2], [3]], [[4], [5, 6]])
    trainer = train(
        max_steps=2, task=Task("t", 6), push_to_hub=True, hub_model_id="someone/policy", hub_always_push=True,
        save_strategy="steps", save_steps=1, reward_model=reward_model, value_init=value_init,
    )  # fmt: skip
    now = trainer.model.state_dict()
    assert len(seen) == 2
    assert all(value.equal(now[name]) for name, value in seen[-1].items())
    head = next(name for name in now if name.startswith("value_") and name.endswith(("head.weight", "score.weight")))
    assert not seen[0][head].equal(now[head])
    assert (hub / "someone" / "policy" / "README.md").is_file()
