"""Several responses to a query: the query is run once for all of them, and nothing else changes."""

import pytest
import torch
from datasets import Dataset
from ppo_parts import prompts
from ppo_runs import CountSteps, assert_same_weights, letter_e, training_logs
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Qwen2Config

from trl_ziegler import sampling
from trl_ziegler.actor_critic import ActorCritic, response_logits
from trl_ziegler.experiments.pipeline import read_jsonl
from trl_ziegler.prefix_sharing import behind_contexts, next_token_mask
from trl_ziegler.queries import with_responses
from trl_ziegler.rollout import Rollout, micro_batches

pytest_plugins = "ppo_fixtures"

CONTEXTS = torch.tensor([[5, 6, 7, 8], [0, 0, 8, 9]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


def responses(length: int, samples: int = 3) -> torch.Tensor:
    """Different ones for each query."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 250, (2 * samples, length), generator=generator)


def repeated(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = CONTEXTS
    return ids.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)


class TestForward:
    def test_layout_by_hand(self):
        """Two responses [7, 8, 9] and [4, 5, 6] behind [PAD, 3]; their last tokens predict nothing and stay out."""
        ids, mask = torch.tensor([[99, 3, 7, 8, 9, 4, 5, 6]]), torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])
        inputs, slots = behind_contexts(ids, mask, 3, 2)
        assert inputs["input_ids"].tolist() == [[0, 3, 7, 8, 4, 5]]
        assert inputs["position_ids"].tolist() == [[0, 0, 1, 2, 1, 2]]
        assert slots.tolist() == [1, 2, 3, 1, 4, 5]
        assert inputs["attention_mask"].long().tolist() == [[[
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 0, 0, 1, 0],
            [0, 1, 0, 0, 1, 1],
        ]]]  # fmt: skip

    @pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("length", [1, 5])
    def test_gives_what_rows_of_their_own_give(self, make_causal_lm, make_classifier, kind, attention, length):
        answers = responses(length)
        for value_model in (None, make_classifier(seed=2)):
            policy = make_causal_lm(kind)
            policy.set_attn_implementation(attention)
            model = ActorCritic(policy, value_model).eval()
            if value_model is None:
                torch.nn.init.normal_(model.value_head.weight)
            results = []
            for contexts, samples in ((CONTEXTS, 3), (repeated(3), 1)):
                model.zero_grad()
                inputs = *with_responses(*contexts, answers), length, samples
                out = model(*inputs)
                assert out.logits.shape[:2] == out.values.shape == (6, length)
                assert_close(response_logits(policy, *inputs), out.logits)
                if value_model is not None:
                    assert_close(model.network_values(*inputs), out.values)
                weights = torch.arange(6.0)[:, None]  # no two responses count the same
                ((out.logits**2).mean(-1) * weights + out.values * weights).sum().backward()
                results.append((out.logits, out.values, [p.grad for p in model.parameters() if p.grad is not None]))
            (logits, values, slopes), (own_logits, own_values, own_slopes) = results
            assert_close((logits, values), (own_logits, own_values), rtol=1e-4, atol=1e-5)
            assert_close(slopes, own_slopes, rtol=1e-3, atol=1e-4)

    def test_another_response_changes_nothing(self, make_causal_lm):
        model = ActorCritic(make_causal_lm()).eval()
        answers = responses(4)
        other = answers.clone()
        other[1] = (other[1] + 1) % 250
        one, two = (model(*with_responses(*CONTEXTS, given), 4, 3).logits for given in (answers, other))
        same = [0, 2, 3, 4, 5]
        assert torch.equal(one[same], two[same])
        assert not torch.equal(one[1], two[1])


class TestSampling:
    def test_mask_of_the_next_tokens_by_hand(self):
        mask = next_token_mask(torch.tensor([[0, 1]]), samples=2, most=3)
        assert mask.long().tolist() == [[[[0, 1, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1]]]]

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_behind_one_copy_of_the_context_as_behind_many(self, make_causal_lm, monkeypatch, kind, attention):
        """Contexts of 20 tokens and 3 x 5 tokens of response: all responses of a context are rows of one pass."""
        policy = make_causal_lm(kind).eval()
        policy.set_attn_implementation(attention)
        ids = torch.randint(1, 250, (2, 20), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1, :7] = 0
        widths = []
        policy.get_input_embeddings().register_forward_pre_hook(lambda module, args: widths.append(args[0].shape))

        def run():
            generator = torch.Generator().manual_seed(3)
            options = {"response_length": 5, "temperature": 0.7, "samples_per_query": 3}
            return sampling.sample(ActorCritic(policy).eval(), ids, mask, generator=generator, **options)

        together = run()
        assert widths == [(2, 20), (2, 3), (2, 3), (2, 3), (2, 3)]
        monkeypatch.setattr(sampling, "can_share_prefix", lambda model: False)
        apart = run()
        assert widths[5:] == [(2, 20), (6, 1), (6, 1), (6, 1), (6, 1)]
        assert torch.equal(together.responses, apart.responses)
        assert len({tuple(row) for row in together.responses.tolist()}) > 4
        assert_close(together.logprobs, apart.logprobs, rtol=0, atol=1e-4)


class TestRollout:
    @pytest.fixture
    def rollout(self):
        rows = torch.arange(6.0)[:, None].expand(6, 3)
        return Rollout(
            torch.tensor([[5, 6], [7, 8], [9, 10]]), torch.ones(3, 2), rows.long(), torch.ones(6, 3).bool(),
            rows, rows, rows,
        )  # fmt: skip

    def test_queries_come_with_all_of_their_responses(self, rollout):
        assert rollout.samples == 2
        part = rollout.of_queries(torch.tensor([2, 0]))
        assert part.context_ids.tolist() == [[9, 10], [5, 6]]
        assert part.responses[:, 0].tolist() == [4, 5, 0, 1]

    def test_an_episode_comes_with_its_context(self, rollout):
        part = rollout.episode(3)
        assert (part.context_ids.tolist(), part.responses[:, 0].tolist(), part.samples) == ([[7, 8]], [3], 1)

    def test_micro_batches_hold_whole_queries(self, rollout):
        options = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False, "gather": None}
        generator = torch.Generator().manual_seed(0)
        parts = list(
            micro_batches(rollout, epochs=2, mini_batch_size=6, micro_batch_size=2, generator=generator, **options)
        )
        assert [len(part.rollout) for part in parts] == [2] * 6
        for part in parts:
            first = int(part.rollout.responses[0, 0])
            assert part.rollout.responses[:, 0].tolist() == [first, first + 1]
            assert part.rollout.context_ids.tolist() == rollout.context_ids[first // 2][None].tolist()
            returns = part.rollout.rewards.flip(1).cumsum(1).flip(1)  # of values equal to the rewards, under lambda
            assert part.returns.shape == part.advantages.shape == returns.shape
        assert sorted(int(part.rollout.responses[0, 0]) for part in parts[:3]) == [0, 2, 4]


class TestTraining:
    def test_shared_and_repeated_contexts_train_the_same_policy(self, train):
        runs = [
            train(num_samples_per_query=2, shared_prefix=shared, kl_target=3.0, learning_rate=1e-3)
            for shared in (True, False)
        ]
        for ours, theirs in zip(*map(training_logs, runs), strict=True):
            for key in ("loss", "objective/kl", "objective/scores", "policy/approxkl_avg", "loss/value_avg"):
                assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key
        assert_same_weights(*runs, atol=1e-5, rtol=0)

    def test_a_separate_value_network_shares_too(self, train, make_classifier):
        runs = [
            train(
                num_samples_per_query=2, shared_prefix=shared, value_model=make_classifier(seed=3), learning_rate=1e-3,
                max_steps=2,
            )
            for shared in (True, False)
        ]  # fmt: skip
        assert_same_weights(*runs, atol=1e-5, rtol=0)

    def test_batches_count_episodes_and_rewards_read_each_query_k_times(self, make_ppo, tmp_path):
        seen = []

        def watch(prompts, completions, number, **columns):
            seen.append((list(prompts), list(number)))
            return letter_e(prompts, completions)

        steps = CountSteps()
        trainer = make_ppo(
            reward_model=watch, num_samples_per_query=2, gradient_accumulation_steps=2, num_mini_batches=2,
            train_dataset=prompts(4), max_steps=2, callbacks=[steps], rollout_dir=str(tmp_path / "rollouts"),
        )  # fmt: skip
        trainer.train()
        assert [len(numbers) for _, numbers in seen] == [8, 8]
        for texts, numbers in seen:
            assert numbers[::2] == numbers[1::2] and texts[::2] == texts[1::2]
            assert sorted(set(numbers)) == [0, 1, 2, 3]
        assert trainer.state.log_history[-2]["episode"] == 16
        assert steps.steps == 2 * 2 * 2  # updates x epochs x minibatches
        rows = read_jsonl(tmp_path / "rollouts" / "rollouts-000001-0.jsonl")
        assert len(rows) == 8 and rows[0]["prompt"] == rows[1]["prompt"]

    def test_a_resumed_run_is_the_same(self, train, tmp_path):
        options = {"num_samples_per_query": 2, "kl_target": 3.0, "save_strategy": "steps", "save_steps": 1}
        whole = train(**options, output_dir=str(tmp_path / "whole"))
        resumed = train(**options, output_dir=str(tmp_path / "again"), resume=str(tmp_path / "whole" / "checkpoint-4"))
        assert_same_weights(resumed, whole)

    def test_a_stream_gives_a_query_for_k_episodes(self, make_ppo):
        seen = []

        def watch(prompts, completions, number, **columns):
            seen.append(list(number))
            return letter_e(prompts, completions)

        make_ppo(
            reward_model=watch, num_samples_per_query=2, train_dataset=prompts(4).to_iterable_dataset(), max_steps=2
        ).train()
        assert seen == [[0, 0, 1, 1], [2, 2, 3, 3]]

    def test_epochs_count_queries(self, make_ppo):
        trainer = make_ppo(num_samples_per_query=4, num_train_epochs=2, max_steps=-1, train_dataset=prompts(4))
        assert trainer.plan.updates == 2 * 4 * 4 / 4

    def test_what_does_not_divide_is_refused(self, make_ppo):
        with pytest.raises(
            ValueError, match="`num_samples_per_query` is 3, which does not divide the 4 episodes of a"
        ):
            make_ppo(num_samples_per_query=3)
        with pytest.raises(ValueError, match="`num_samples_per_query` is 0; give at least 1"):
            make_ppo(num_samples_per_query=0)

    def test_too_few_prompts_are_refused(self, make_ppo):
        data = Dataset.from_dict({"prompt": [" a dog"], "number": [0]})
        with pytest.raises(
            ValueError, match=r"has 1 prompts, fewer than the 2 of one update .*`num_samples_per_query`"
        ):
            make_ppo(num_samples_per_query=2, train_dataset=data)
        make_ppo(num_samples_per_query=4, train_dataset=data)

    def test_a_model_that_cannot_share_is_refused_unless_told_otherwise(self, make_ppo, tokenizer):
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, use_sliding_window=True, sliding_window=8,
            max_window_layers=0,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(ValueError, match=r"sliding.*`shared_prefix=False`"):
            make_ppo(model=model, num_samples_per_query=2)
        make_ppo(model=model, num_samples_per_query=2, shared_prefix=False, max_steps=1).train()
