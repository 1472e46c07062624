"""What must not matter: padding, how a batch is split, the order of candidates, the number of processes.

Held elsewhere: padding and filler of the reward model and the sampler (test_reward_mixin.py, test_sampling.py), chunks
of a rollout (test_ppo_trainer.py), two processes of the reward trainer (test_reward_trainer_runs.py).
"""

import pytest
import torch
from launches import launched, several_processes
from reward_records import assert_same_parameters, parameters_of, records

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.functional import gae, policy_loss, token_logprobs, value_loss, whiten
from trl_ziegler.queries import QueryCollator, with_responses
from trl_ziegler.reward_model import as_reward_model, score_token_ids

pytest_plugins = ("ppo_fixtures", "reward_fixtures")


def logs_of(trainer) -> list[dict]:
    ignored = ("epoch", "step")
    return [
        {name: value for name, value in row.items() if name not in ignored}
        for row in trainer.state.log_history
        if "loss" in row
    ]


def assert_same_run(ours, theirs, tolerance=1e-5):
    """Weights and every logged number."""
    assert_same_parameters(parameters_of(ours.model), parameters_of(theirs.model), atol=tolerance, rtol=0)
    for a, b in zip(logs_of(ours), logs_of(theirs), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=tolerance, nan_ok=True)


# ---- Padding --------------------------------------------------------------------------------------------------------


def wider(collate, at, by=5, filler=77):
    """The batches of `collate` with `by` more padded columns before column `at`."""

    def collate_wider(rows):
        batch = collate(rows)
        for name, value in (("input_ids", filler), ("attention_mask", 0)):
            old = batch[name]
            batch[name] = torch.cat([old[:, :at], torch.full((len(old), by), value), old[:, at:]], 1)
        return batch

    return collate_wider


@pytest.mark.parametrize("at", [0, -1], ids=["left", "between query and suffix"])
def test_more_padding_gives_the_same_run(small_ppo, at):
    """Between query and suffix is where the reference pads."""
    plain, padded = small_ppo(start=False), small_ppo(start=False)
    padded.data_collator = wider(padded.data_collator, at)
    for trainer in (plain, padded):
        trainer.train()
    assert_same_run(plain, padded)


def test_side_and_amount_of_padding_give_the_same_losses_and_gradients(make_causal_lm):
    """Two layouts of one batch: padded on the left, and each context's padding after its first token."""
    response = torch.tensor([[9, 8, 7], [6, 5, 4]])
    layouts = (
        (torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])),
        (torch.tensor([[1, 99, 99, 2, 3, 4], [5, 99, 99, 99, 99, 6]]),
         torch.tensor([[1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1]])),
    )  # fmt: skip
    advantages, returns = torch.tensor([[1.0, -1.0, 0.5], [2.0, 0.3, -1.0]]), torch.ones(2, 3)
    results = []
    for ids, mask in layouts:
        model = ActorCritic(make_causal_lm().eval())
        torch.nn.init.ones_(model.value_head.weight)
        out = model(*with_responses(ids, mask, response), 3)
        logprobs = token_logprobs(out.logits, response, temperature=0.7)
        old = torch.full_like(logprobs, -6.0)
        loss = policy_loss(logprobs, old, advantages) + 0.1 * value_loss(out.values, torch.zeros(2, 3), returns)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_wider_batches_train_the_same_reward_model(make_trainer):
    models = []
    for multiple in (None, 32):
        trainer = make_trainer(records(8), pad_to_multiple_of=multiple, optimizer="tf_adam", learning_rate=1e-3)
        trainer.train()
        models.append(parameters_of(trainer.model))
    assert_same_parameters(*models, atol=1e-6, rtol=0)


# ---- How a batch is split -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_micro_batches_give_the_same_run(small_ppo, micro, minibatches):
    settings = {"num_mini_batches": minibatches, "whiten_scope": "rank", "kl_target": 0.5, "kl_horizon": 100}
    whole = small_ppo(**settings)
    parts = small_ppo(per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro, **settings)
    assert parts.plan.micro_batches_per_step == 4 // minibatches // micro
    assert_same_run(whole, parts)


def test_split_of_the_rollout_gives_the_same_log_probabilities_and_values(small_ppo):
    trainer = small_ppo(max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    response = torch.arange(24).reshape(4, 6)
    ids, mask = with_responses(batch["input_ids"], batch["attention_mask"], response)
    model = trainer.model.eval()
    with torch.no_grad():
        whole = model(ids, mask, 6)
        for size in (1, 3):
            parts = [model(i, m, 6) for i, m in zip(ids.split(size), mask.split(size), strict=True)]
            torch.testing.assert_close(torch.cat([p.logits for p in parts]), whole.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(torch.cat([p.values for p in parts]), whole.values, atol=1e-5, rtol=0)


# ---- Order of candidates and rows -----------------------------------------------------------------------------------


def test_order_of_the_candidates_gives_the_same_reward_model(make_trainer):
    orders = ([0, 1, 2, 3], [2, 0, 3, 1])
    models = []
    for order in orders:
        rows = records(8).map(
            lambda row, order=order: {
                "completion_ids": [row["completion_ids"][i] for i in order],
                "label": order.index(row["label"]),
            }
        )
        trainer = make_trainer(rows, optimizer="tf_adam", learning_rate=1e-3)
        trainer.train()
        models.append(parameters_of(trainer.model))
    assert_same_parameters(*models, atol=1e-6, rtol=0)


def test_order_of_the_rows_gives_the_same_rewards(make_classifier):
    model = as_reward_model(make_classifier(), fresh_head=True)
    rows = records(6)
    queries, responses = rows["prompt_ids"][:], [each[0] for each in rows["completion_ids"]]
    order = [3, 0, 5, 1, 4, 2]
    scores = score_token_ids(model, queries, responses)
    moved = score_token_ids(model, [queries[i] for i in order], [responses[i] for i in order])
    torch.testing.assert_close(moved, scores[order], atol=1e-6, rtol=0)


def test_collator_keeps_rows_apart(tokenizer, small_ppo):
    """A row's context does not depend on the others of its batch."""
    trainer = small_ppo(start=False)
    collate = QueryCollator(trainer.task)
    rows = [trainer.train_dataset[i] for i in range(4)]
    together = collate(rows)
    for i, row in enumerate(rows):
        alone = collate([row])
        kept = together["input_ids"][i][together["attention_mask"][i].bool()]
        assert torch.equal(kept, alone["input_ids"][0])


# ---- Number of processes --------------------------------------------------------------------------------------------

PROCESSES = """
import os, sys
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_ziegler import Task, ZieglerPPOConfig, ZieglerPPOTrainer
from trl_ziegler.experiments.recipe import end_processes
from trl_ziegler.functional import token_logprobs
from trl_ziegler.queries import with_responses
from trl_ziegler.sampling import Samples

folder = sys.argv[1]
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
responses = torch.load(f"{folder}/responses.pt")  # one for each prompt: the rollout is frozen
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/base")


class Frozen(ZieglerPPOTrainer):
    def _sample(self, batch, generator, count):
        answers = responses[[(number + 7 * k) % 32 for number in batch["number"] for k in range(count)]]
        model = self.accelerator.unwrap_model(self.model)
        out = model(*with_responses(batch["input_ids"], batch["attention_mask"], answers), answers.shape[1], count)
        logprobs = token_logprobs(out.logits, answers, temperature=self.task.task.temperature)
        return Samples(answers, logprobs, out.values.float())


class Recorded(Frozen):
    def compute_loss(self, model, inputs, **kwargs):
        parts.append((inputs.rollout.rewards, inputs.advantages))
        return super().compute_loss(model, inputs, **kwargs)


def run(name, trainer_class, prompts, **changes):
    seen = []

    def reward(prompts, completions, number, **columns):
        seen.append([number, completions])
        return [float(len(text)) + n for text, n in zip(completions, number)]

    args = ZieglerPPOConfig(
        f"{folder}/{name}{world}", per_device_train_batch_size=16 // world, max_steps=2, num_ppo_epochs=2,
        learning_rate=1e-2, optimizer="tf_adam", max_grad_norm=0, whiten_rewards=True, kl_target=0.5, kl_horizon=1000,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=3,
        ddp_backend="gloo" if world > 1 else None, **changes,
    )
    trainer = trainer_class(
        args, tokenizer, AutoModelForCausalLM.from_pretrained(f"{folder}/base"), reward_model=reward,
        train_dataset=Dataset.from_dict({"prompt": prompts, "number": list(range(len(prompts)))}),
        task=Task("t", 4, temperature=0.7),
    )
    assert args.world_size == world
    trainer.train()
    logs = [{k: v for k, v in row.items() if k != "epoch"} for row in trainer.state.log_history if "loss" in row]
    weights = {key: tensor.detach().clone() for key, tensor in trainer.model.state_dict().items()}
    torch.save({"logs": logs, "weights": weights, "seen": seen}, f"{folder}/{name}_{world}_{rank}.pt")


parts = []
words = [" the cat", " a dog saw", " she", " they found the old house"]
run("global", Frozen, [words[i % 4] for i in range(32)], whiten_scope="global")
run("several", Frozen, [words[i % 4] for i in range(16)], num_samples_per_query=2)
run("rank", Recorded, [words[i % 4] for i in range(32)], whiten_scope="rank")
torch.save(parts, f"{folder}/parts_{world}_{rank}.pt")
run("alike", ZieglerPPOTrainer, [" the cat"] * 32)
end_processes(PartialState())
"""


RUNS: dict[
    str, object
] = {}  # a fixture of the module could not use the model and the tokenizer, which are made per test


@pytest.fixture
def processes(tmp_path_factory, make_causal_lm, tokenizer):
    """`processes(name, world, rank)`: what each run of `PROCESSES` left, on one process and on two."""
    if not RUNS:
        folder = tmp_path_factory.mktemp("processes")
        make_causal_lm().save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        generator = torch.Generator().manual_seed(0)
        torch.save(torch.randint(0, 200, (32, 4), generator=generator), folder / "responses.pt")
        (folder / "run.py").write_text(PROCESSES)
        for launcher in ([], several_processes()):
            launched(*launcher, str(folder / "run.py"), str(folder))
        RUNS["folder"] = folder
    return lambda name, world, rank=0: torch.load(RUNS["folder"] / f"{name}_{world}_{rank}.pt")


def assert_same_numbers(ours: list[dict], theirs: list[dict]) -> None:
    """But for the variance of the returns, which the reference takes per rank and averages, and what divides by it."""
    by_rank = ("val/return_var", "val/explained_variance")
    for a, b in zip(ours, theirs, strict=True):
        kept = [{name: value for name, value in row.items() if name not in by_rank} for row in (a, b)]
        assert kept[0] == pytest.approx(kept[1], rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global", "several"])
def test_two_processes_make_the_run_of_one(processes, name):
    """A frozen rollout, whitened over both: the same losses, statistics, beta and weights, with one or two samples."""
    one, two = processes(name, 1), processes(name, 2)
    assert_same_numbers(two["logs"], one["logs"])
    for key, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weight, atol=1e-5, rtol=0, msg=key)
    other_rank = processes(name, 2, rank=1)["weights"]
    assert all(torch.equal(other_rank[key], weight) for key, weight in two["weights"].items())


@pytest.mark.slow
def test_whitening_by_rank_is_each_ranks_own(processes):
    """Each rank's advantages have mean 0 and variance 1 by themselves: another run than that of one process."""
    for rank in range(2):
        rewards, advantages = processes("parts", 2, rank)[0]
        whitened = whiten(rewards, shift_mean=False)
        expected, _ = gae(whitened, torch.zeros_like(whitened))  # the value head starts at zero
        torch.testing.assert_close(advantages, whiten(expected), atol=1e-5, rtol=1e-5)
        assert len(advantages) == 8
        assert advantages.mean().abs() < 1e-5
        assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    one, two, over_both = processes("rank", 1), processes("rank", 2), processes("global", 2)
    assert_same_numbers(one["logs"], processes("global", 1)["logs"])  # on one process the two are the same
    apart = [(two["weights"][name] - weight).abs().max() for name, weight in over_both["weights"].items()]
    assert max(apart) > 1e-3


@pytest.mark.slow
def test_ranks_draw_disjoint_queries_in_the_order_of_one_process_and_other_responses_to_them(processes):
    one, ranks = processes("alike", 1)["seen"], [processes("alike", 2, rank)["seen"] for rank in range(2)]
    for update, (numbers, _) in enumerate(one):
        first, second = (ranks[rank][update] for rank in range(2))
        assert first[0] + second[0] == numbers and len(set(numbers)) == 16
        assert first[1] != second[1]  # though every prompt is the same
