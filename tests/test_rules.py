"""Rules of the reference that no other file's tests hold; `docs/fidelity.md` names the test of every rule.

A test's docstring opens with the rule's id on that page.
"""

import copy
import math

import numpy as np
import pytest
import torch
from reward_records import QUERIES, RESPONSES, parameters_of, records
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast, TrainingArguments

from trl_ziegler.actor_critic import ActorCritic, model_inputs, response_logits
from trl_ziegler.functional import (
    best_of_k_loss,
    gain_and_bias,
    policy_loss,
    token_logprobs,
    token_logprobs_and_entropy,
)
from trl_ziegler.labelers import ScoreLabeler
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_statistics import rollout_statistics
from trl_ziegler.reward_mixin import RewardHead
from trl_ziegler.reward_model import as_reward_model, reward_head, score_token_ids
from trl_ziegler.reward_trainer import BestOfKRewardConfig
from trl_ziegler.reward_wrapper import Scored, ShapedRewards
from trl_ziegler.tasks import BOOKS, CNNDM, TLDR, Task

pytest_plugins = ("ppo_fixtures", "reward_fixtures")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- Queries --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's splitting rule, its ids of the 256 bytes (`.` 13, newline 198) and its one id 628 for two newlines."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    newline = alphabet[198]
    vocab |= {newline * 2: 628, "<|endoftext|>": 50256}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(newline, newline)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def test_context_parts_encoded_alone_differ_from_the_joined_text(gpt2_tokenizer):
    """A4: two newlines at the end of a part are one id, two newlines before a word are two."""
    task = CNNDM.bind(gpt2_tokenizer)
    query = gpt2_tokenizer("ab.")["input_ids"]
    context = task.context(query)
    assert task.prefix_ids[-1] == 628
    assert task.suffix_ids[:2] == (198, 198)
    assert context == [*task.prefix_ids, *query, *task.suffix_ids]
    joined = gpt2_tokenizer("Article:\n\nab.\n\nTL;DR:")["input_ids"]
    assert gpt2_tokenizer.decode(context) == gpt2_tokenizer.decode(joined)
    assert context != joined


def test_stop_and_cut_tokens_have_the_references_ids(gpt2_tokenizer):
    """A2, C1: '.' is 13, a newline 198."""
    assert (BOOKS.bind(gpt2_tokenizer).truncate_id, BOOKS.bind(gpt2_tokenizer).end_id) == (13, 13)
    assert (TLDR.bind(gpt2_tokenizer).truncate_id, CNNDM.bind(gpt2_tokenizer).end_id) == (198, 198)


def test_suffix_moves_the_policys_log_probabilities(tokenizer, make_causal_lm):
    """A5: the policy reads it (that the reward model does not is a test of the reward wrapper)."""
    model = make_causal_lm().eval()
    query, response = tokenizer(" the cat")["input_ids"], torch.tensor([[5, 6, 7]])
    logprobs = []
    for suffix in (" and", " was"):
        ids = torch.cat([torch.tensor([Task("t", 3, suffix=suffix).bind(tokenizer).context(query)]), response], 1)
        logprobs.append(token_logprobs(response_logits(model, ids, torch.ones_like(ids), 3), response))
    assert (logprobs[0] - logprobs[1]).abs().min() > 1e-4


def test_left_padding_without_positions_would_change_the_logits(make_causal_lm):
    """A7: what the positions are for; with them the difference is rounding."""
    model = make_causal_lm().eval()
    plain = model(torch.tensor([[5, 6, 7]])).logits
    inputs = model_inputs(torch.tensor([[0, 0, 0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 0, 0, 1, 1, 1]]))
    assert_close(model(**inputs).logits[:, 4:], plain, atol=1e-5, rtol=0)
    positions = torch.arange(7)[None]  # a plain count over the row
    assert (model(**{**inputs, "position_ids": positions}).logits[:, 4:] - plain).abs().max() > 1e-2


def test_order_of_the_queries_follows_the_data_seed_and_not_the_runs(small_ppo):
    """A12: two run seeds, one order."""
    orders = [list(small_ppo(start=False, seed=seed, data_seed=0)._get_train_sampler()) for seed in (1, 2)]
    assert orders[0] == orders[1]
    other = list(small_ppo(start=False, seed=1, data_seed=5)._get_train_sampler())
    assert other != orders[0] and sorted(other) == sorted(orders[0])


def test_ranks_sample_with_seeds_of_their_own_on_one_order(small_ppo, monkeypatch):
    """E12, A12: seed + 100003 rank decides what a rank samples, not which queries there are."""

    def seen(rank, seed):
        rows = []

        def note(prompts, completions, number, **columns):
            rows.append((number, completions))
            return [0.0] * len(prompts)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingArguments, "process_index", property(lambda self: rank))
            small_ppo(seed=seed, data_seed=0, max_steps=1, reward_model=note, learning_rate=0.0)
        return rows

    first, second = seen(0, 7), seen(1, 7)
    assert second == seen(0, 7 + 100_003)
    (queries, responses), (same_queries, other_responses) = first[0], second[0]
    assert queries == same_queries and responses != other_responses


# ---- Sampling and log-probabilities ---------------------------------------------------------------------------------


def test_kl_depends_on_the_temperature_and_needs_it_on_both_sides():
    """B2: the temperature belongs to policy and reference alike; on one alone, equal models are apart."""
    policy, reference = normal(1, 5, 9), 3 * normal(1, 5, 9, seed=1)
    probabilities = (policy / 0.5).softmax(-1)

    def kl(policy_temperature, reference_temperature, against):
        total = torch.zeros(1, 5, dtype=torch.float64)
        for token in range(9):
            tokens = torch.full((1, 5), token)
            ours = token_logprobs(policy, tokens, temperature=policy_temperature)
            theirs = token_logprobs(against, tokens, temperature=reference_temperature)
            total += probabilities[..., token] * (ours - theirs)
        return total.sum().item()

    assert kl(0.5, 0.5, policy) == pytest.approx(0, abs=1e-12)
    assert kl(0.5, 1.0, policy) > 0.1
    assert kl(0.5, 0.5, reference) != pytest.approx(kl(1.0, 1.0, reference), rel=0.1)


def test_one_step_at_the_references_rate_moves_float32_weights_and_would_not_move_most_bfloat16_ones(small_ppo):
    """B4: half the spacing of bfloat16 numbers near 0.02 is 6e-5."""
    before = parameters_of(small_ppo(start=False).model)
    after = parameters_of(small_ppo(max_steps=1, num_ppo_epochs=1, learning_rate=1e-5, optimizer="tf_adam").model)
    embedding = "policy.transformer.wte.weight"
    moved = (after[embedding] - before[embedding]).abs()
    assert 0 < moved.max() <= 1.01e-5
    assert (moved > 0).float().mean() > 0.9
    rough, step = before[embedding].bfloat16(), (after[embedding] - before[embedding]).bfloat16()
    assert (rough + step == rough).float().mean() > 0.7


# ---- From response to score -----------------------------------------------------------------------------------------


def test_scores_are_neither_clipped_nor_scaled_and_kl_never_stops_a_run(small_ppo):
    """C5: a score of a million reaches the reward as it is, and every planned step is taken at a large KL."""
    trainer = small_ppo(
        reward_model=lambda prompts, completions, **columns: [1e6] * len(prompts),
        task=Task("t", 6), learning_rate=0.1, num_ppo_epochs=4, max_grad_norm=0,
    )  # fmt: skip
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["objective/scores"] for row in logs] == [1e6] * 3
    assert abs(logs[-1]["objective/kl"]) > 1
    assert trainer.state.global_step == 3 * 4


# ---- Reward model ---------------------------------------------------------------------------------------------------


def test_fresh_head_starts_without_bias_at_gain_1():
    """D1, D2: the bias is there and 0; gain 1 and offset 0 leave the raw reward as it is."""
    head = RewardHead(8)
    assert (head.bias.item(), head.gain.item(), head.offset.item()) == (0.0, 1.0, 0.0)
    assert head(torch.zeros(3, 8)).tolist() == [[0.0]] * 3


def test_one_pass_over_all_candidates_gives_the_loss_of_k_separate_passes(make_trainer):
    """D3."""
    trainer = make_trainer(records(4))
    rows = list(trainer.train_dataset)
    together = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    columns = [
        score_token_ids(trainer.model, [row["prompt_ids"] for row in rows], [row["completion_ids"][k] for row in rows])
        for k in range(4)
    ]
    labels = torch.tensor([row["label"] for row in rows])
    assert best_of_k_loss(torch.stack(columns, 1), labels).item() == pytest.approx(together, abs=1e-6)


def test_sixteen_samples_tell_the_population_gain_from_the_sample_gain():
    """D5: the two differ by sqrt(16/15), which is 3.3 %."""
    raw = normal(16)
    gain, _ = gain_and_bias(raw)
    assert gain.item() == pytest.approx(1 / raw.std(correction=0).item(), rel=1e-12)
    assert gain.item() * raw.std().item() == pytest.approx(1.0328, abs=5e-5)


def test_every_label_is_in_exactly_one_batch(make_trainer):
    """D7: one epoch, each record once."""
    trainer = make_trainer(records(16))
    keys = [tuple(map(tuple, row["completion_ids"])) for row in trainer.train_dataset]
    seen = []
    collate = trainer.data_collator

    def note(rows):
        seen.extend(tuple(map(tuple, row["completion_ids"])) for row in rows)
        return collate(rows)

    trainer.data_collator = note
    trainer.train()
    assert sorted(seen) == sorted(keys) and len(set(keys)) == 16
    assert seen != keys  # in an order of its own


def test_reward_models_rate_falls_from_lr_to_one_part_in_156(make_trainer):
    """D8: 4992 labels in batches of 32."""
    trainer = make_trainer(records(4), learning_rate=5e-5, lr_scheduler_type="linear")
    trainer.create_optimizer_and_scheduler(156)
    rates = []
    for _ in range(156):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[0] == 5e-5
    assert rates[-1] == pytest.approx(3.205e-7, abs=5e-11)
    np.testing.assert_allclose(rates, 5e-5 * (1 - np.arange(156) * 32 / 4992), rtol=1e-9)


def test_a_gradient_of_large_norm_is_not_clipped(make_trainer, make_classifier):
    """D10: with the presets' `max_grad_norm` the step is the rate times the whole gradient."""
    model = as_reward_model(make_classifier(), fresh_head=True)
    reward_head(model).set_affine(1000.0, 0.0)
    limit = BestOfKRewardConfig.released_code("sentiment", use_cpu=True, report_to="none").max_grad_norm
    trainer = make_trainer(records(4), model=model, optim="sgd", learning_rate=1e-6, max_grad_norm=limit)
    twin = copy.deepcopy(trainer.model)
    trainer.compute_loss(twin, trainer.data_collator(list(trainer.train_dataset))).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in twin.parameters() if p.grad is not None))
    assert norm > 50
    trainer.train()
    for (name, moved), start in zip(trainer.model.named_parameters(), twin.parameters(), strict=True):
        if start.grad is not None:
            assert_close(moved, start - 1e-6 * start.grad, atol=1e-7, rtol=1e-5, msg=name)


def test_labels_are_the_argmax_of_the_score_on_every_record():
    """D12, H1: a scripted labeller picks the best of K by its score."""
    scores = np.random.default_rng(0).normal(size=(500, 4))
    labeler = ScoreLabeler(lambda prompts, completions: [float(text) for text in completions])
    labels = labeler.label(["x"] * 500, [[repr(float(score)) for score in row] for row in scores])
    assert labels == scores.argmax(1).tolist()


# ---- PPO ------------------------------------------------------------------------------------------------------------


def test_there_is_no_entropy_term():
    """E7: without an advantage the policy's loss has no gradient, whatever the entropy."""
    logits = normal(2, 3, 5).requires_grad_()
    logprobs, entropy = token_logprobs_and_entropy(logits, torch.zeros(2, 3, dtype=torch.long))
    policy_loss(logprobs, logprobs.detach(), torch.zeros(2, 3)).backward()
    assert not logits.grad.any() and entropy.min() > 0.1


def test_ppos_last_rate_of_a_million_episodes_is_one_part_in_1954(small_ppo):
    """E9: 1,000,000 episodes in updates of 512 are 1954 updates, the last one incomplete in the count."""
    trainer = small_ppo(
        start=False, lr_scheduler_type="linear", learning_rate=1e-5, max_steps=-1, total_episodes=4 * 1954 - 3
    )
    assert trainer.plan.updates == 1954 == math.ceil(1_000_000 / 512)
    steps = trainer.plan.steps_per_update
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    rate = trainer.lr_scheduler.lr_lambdas[0]
    assert [1e-5 * rate(step) for step in (0, steps - 1)] == [1e-5, 1e-5]
    last = [1e-5 * rate(step) for step in (1953 * steps, 1954 * steps - 1)]
    assert last == pytest.approx([1e-5 / 1954] * 2, rel=1e-9)


def test_rollout_statistics_by_hand():
    """E11: KL and entropy are sums over a response, the total is the mean score plus the KL part."""
    logprobs, reference = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.tensor([[-2.0, -2.0], [-1.0, -4.0]])
    kl_reward = -0.5 * (logprobs - reference)
    scored = Scored(
        scores=torch.tensor([2.0, -1.0]), raw=torch.tensor([2.0, 7.0]), parts=torch.zeros(2, 1),
        lengths=torch.tensor([2, 2]), valid=torch.tensor([True, False]),
    )  # fmt: skip
    everything = torch.ones(2, 2, dtype=torch.bool)
    shaped = ShapedRewards(
        rewards=kl_reward, kl_reward=kl_reward, entropy_bonus=-0.5 * logprobs, mask=everything
    )  # fmt: skip
    means = {
        name: float(column.float().mean())
        for name, column in rollout_statistics(logprobs, reference, scored, shaped, ["r"]).items()
    }
    assert means["objective/kl"] == 1.0  # (1 + 1) / 2
    assert means["objective/entropy"] == 3.5  # (3 + 4) / 2
    assert means["objective/scores"] == 0.5  # penalised ones included
    assert means["score/raw"] == 4.5
    assert means["objective/non_score_reward"] == -0.5
    assert means["objective/rlhf_reward"] == 0.0
    assert means["objective/valid_share"] == 0.5


def test_gamma_means_the_discount_and_nothing_else():
    """K4."""
    names = {name for name in ZieglerPPOConfig.__dataclass_fields__ if "gamma" in name}
    assert names == {"gamma"}


def test_policy_reference_and_reward_model_share_no_weight(small_ppo, make_classifier):
    """D1, E1: policy, reference and reward model are three networks; the value is a head on the policy's trunk."""
    judge = as_reward_model(make_classifier(), fresh_head=True)
    trainer = small_ppo(reward_model=judge, start=False)
    owners = [trainer.model, trainer.ref_model, judge]
    pointers = [{p.data_ptr() for p in owner.parameters()} for owner in owners]
    assert not pointers[0] & pointers[1] and not pointers[0] & pointers[2] and not pointers[1] & pointers[2]
    own = {name for name, _ in trainer.model.named_parameters() if not name.startswith("policy.")}
    assert own == {"value_head.weight", "value_head.bias"}
    assert isinstance(trainer.model, ActorCritic)


def test_reward_does_not_read_beyond_the_cut_but_reads_the_cut_token(make_reward_model):
    """C3: the reward sits on the last present token."""
    model = make_reward_model()
    base = score_token_ids(model, QUERIES[:1], [RESPONSES[0]])
    changed = score_token_ids(model, QUERIES[:1], [[*RESPONSES[0][:-1], 99]])
    assert (base - changed).abs().item() > 1e-4
