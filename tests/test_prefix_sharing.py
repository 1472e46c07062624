"""Sequences behind one copy of their prefix: rows and masks by hand, and rewards equal to those of separate rows."""

from types import SimpleNamespace

import pytest
import torch
from benchmarks.reward_speed import Size, measure, parse_shape, report
from torch.nn.functional import rms_norm
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
    Qwen3NextConfig,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from trl_ziegler.prefix_sharing import (
    PADDING,
    SERVED_MODEL_TYPES,
    additive_mask,
    can_share_prefix,
    check_prefix_sharing,
    pack_shared_prefix,
    packed_inputs,
    shared_prefix_mask,
    sharing_groups,
)
from trl_ziegler.reward_model import as_reward_model, score_token_ids

pytest_plugins = "reward_fixtures"

RECORDS = [
    [[5, 6, 7, 8, 9], [5, 6, 7, 9], [5, 6, 7, 8, 10, 11, 12, 13], [5, 6, 7]],
    [[3, 4], [3, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]],
]
"""Mixed lengths and mixed K; a sequence that is the prefix itself; the first row is longer than 12 tokens."""


def separate(model, records):
    """Rewards of every sequence in a row of its own, record by record."""
    return torch.cat([model(torch.tensor([ids])).logits[0] for record in records for ids in record])


def packed(model, records, **kwargs):
    rows = pack_shared_prefix(records, **kwargs)
    rewards = model(**packed_inputs(rows)).logits
    return torch.cat([row[: len(record)] for row, record in zip(rewards, records, strict=True)])


class TestRows:
    def test_by_hand(self):
        rows = pack_shared_prefix([[[1, 2, 3], [1, 2, 4, 5], [1, 2]], [[7, 8], [9]]], filler=42)
        assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 42, 42]]
        assert rows.segment_ids.tolist() == [[0, 0, 1, 2, 2], [1, 1, 2, -1, -1]]
        assert rows.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
        assert rows.reward_positions.tolist() == [[2, 4, 1], [1, 2, 0]]
        assert {tensor.dtype for tensor in rows} == {torch.int64}

    def test_what_completions_begin_with_joins_the_prefix(self):
        assert pack_shared_prefix([[[1, 2, 3, 4], [1, 2, 3, 5]]]).segment_ids.tolist() == [[0, 0, 0, 1, 2]]

    def test_one_sequence_is_a_prefix_alone(self):
        rows = pack_shared_prefix([[[4, 5, 6]]])
        assert rows.segment_ids.tolist() == [[0, 0, 0]] and rows.reward_positions.tolist() == [[2]]

    def test_width_is_rounded_up(self):
        assert pack_shared_prefix([[[1, 2], [1, 3]]], pad_to_multiple_of=8).segment_ids.tolist() == [
            [0, 1, 2, *[PADDING] * 5]
        ]

    @pytest.mark.parametrize("record", [[], [[1], []]])
    def test_a_record_without_tokens_is_named(self, record):
        with pytest.raises(ValueError, match="Record 1 has no sequence, or one without tokens; drop it"):
            pack_shared_prefix([[[1]], record])

    def test_filler_may_be_an_id_the_model_lacks(self):
        rows = pack_shared_prefix([[[1, 2], [1, 3]], [[4], [5]]], filler=10**6)
        assert rows.input_ids.max() == 10**6 and packed_inputs(rows)["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]


class TestMask:
    def test_by_hand(self):
        """Prefix of two, one token, two tokens, one slot of padding."""
        mask = shared_prefix_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]))
        assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.bool
        assert mask[0, 0].long().tolist() == [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],
            [1, 1, 0, 1, 1, 0],
            [1, 1, 0, 0, 0, 1],
        ]

    def test_rows_have_their_own(self):
        segments = torch.tensor([[0, 1, 2], [1, 1, 2]])
        both = shared_prefix_mask(segments)
        assert torch.equal(both, torch.cat([shared_prefix_mask(row[None]) for row in segments]))
        assert both[1, 0].long().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]

    def test_wrong_rank_is_refused(self):
        with pytest.raises(ValueError, match=r"`segment_ids` has 1 dimensions; give \[B, S\]"):
            shared_prefix_mask(torch.tensor([0, 1]))

    def test_what_eager_attention_adds(self):
        added = additive_mask(torch.tensor([True, False]), torch.float16)
        assert added.tolist() == [0, -65504] and added.dtype == torch.float16


class TestGroups:
    def test_equal_prefixes_are_grouped_wherever_they_stand(self):
        prefixes = [[1] * 10, [2] * 10, [1] * 10, [2] * 9]
        assert sharing_groups(prefixes, [12, 12, 13, 12], most=8) == [[0, 2], [1], [3]]

    def test_at_most_so_many(self):
        assert sharing_groups([[1] * 9] * 5, [10] * 5, most=2) == [[0, 1], [2, 3], [4]]
        assert sharing_groups([[1] * 9] * 3, [10] * 3, most=1) == [[0], [1], [2]]

    def test_a_row_that_computes_more_scores_is_not_made(self):
        """Prefix 2. Rests of 3: (2 + 6)² = 64 > 2 · 5². Four rests of 1: 36 <= 4 · 3². Of 1, 1 and 3: 49 > 43."""
        assert sharing_groups([[1, 1]] * 2, [5, 5], most=8) == [[0], [1]]
        assert sharing_groups([[1, 1]] * 4, [3] * 4, most=8) == [[0, 1, 2, 3]]
        assert sharing_groups([[1, 1]] * 3, [3, 3, 5], most=8) == [[0, 1], [2]]

    def test_no_prefix_nothing_to_share(self):
        assert sharing_groups([[], []], [1, 1], most=8) == [[0], [1]]


def tiny(model_type, attention):
    """A random reward model of any type."""
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "ffn_dim": 48, "word_embed_proj_dim": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 12,
        "head_dim": 16, "rotary_dim": 8, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "sliding_window": None,
    }  # fmt: skip
    if model_type == "falcon":
        del sizes["head_dim"]
    if (model_type, attention) == ("gpt2", "eager"):
        sizes["max_position_embeddings"] = 13  # transformers 5.0 needs one per slot here
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**sizes, num_labels=1, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return as_reward_model(model, fresh_head=True).eval()


class TestRewards:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("model_type", SERVED_MODEL_TYPES)
    def test_every_served_architecture_gives_the_rewards_of_separate_rows(self, model_type, attention):
        """12 positions serve sequences of at most 12 tokens, however many slots their row has."""
        if (model_type, attention) == ("gptj", "sdpa"):
            pytest.skip("transformers has only eager attention for GPT-J classifiers")
        model = tiny(model_type, attention)
        check_prefix_sharing(model)
        with torch.no_grad():
            expected = separate(model, RECORDS)
            torch.testing.assert_close(packed(model, RECORDS), expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.01

    @pytest.mark.parametrize(
        ("kind", "attention", "dtype", "tolerance"),
        [
            ("gpt2", "sdpa", torch.float32, 1e-5),
            ("gpt2", "eager", torch.float32, 1e-5),
            ("llama", "sdpa", torch.float32, 1e-5),
            ("llama", "eager", torch.float32, 1e-5),
            ("gpt2", "sdpa", torch.float64, 1e-10),
            ("gpt2", "eager", torch.float64, 1e-10),
            ("llama", "sdpa", torch.float64, 1e-10),  # its eager softmax is in float32 whatever the model's dtype
        ],
    )
    def test_rewards_and_gradients_are_those_of_separate_rows(
        self, make_reward_model, monkeypatch, kind, attention, dtype, tolerance
    ):
        # Llama's own norm computes in float32 whatever the model's dtype.
        monkeypatch.setattr(LlamaRMSNorm, "forward", lambda norm, x: rms_norm(x, x.shape[-1:], norm.weight, 1e-6))
        model = make_reward_model(kind).to(dtype)
        model.set_attn_implementation(attention)
        weights = torch.randn(6, generator=torch.Generator().manual_seed(0)).to(dtype)
        results = []
        for rewards in (separate, packed):
            model.zero_grad()
            values = rewards(model, RECORDS)
            (values.tanh() * weights).sum().backward()
            results.append((values.detach(), [p.grad.clone() for p in model.parameters()]))
        assert results[0][0].dtype == dtype
        torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)

    def test_padding_and_filler_change_nothing(self, make_reward_model):
        model = make_reward_model().double()
        with torch.no_grad():
            wide = packed(model, RECORDS, filler=9, pad_to_multiple_of=64)
            torch.testing.assert_close(wide, packed(model, RECORDS), atol=1e-12, rtol=0)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    @pytest.mark.parametrize("changed", [0, 1, 2])
    def test_a_completion_sees_no_other_on_its_left_or_right(self, make_reward_model, kind, attention, changed):
        model = make_reward_model(kind)
        model.set_attn_implementation(attention)
        record = [[1, 2, 3, 10, 11], [1, 2, 3, 12, 13], [1, 2, 3, 14, 15]]
        other = [[1, 2, 3, 40, 41] if k == changed else ids for k, ids in enumerate(record)]
        with torch.no_grad():
            before, after = packed(model, [record]), packed(model, [other])
        assert [k for k in range(3) if before[k] != after[k]] == [changed]

    def test_a_boolean_mask_means_the_same_in_both_attentions(self, make_reward_model):
        """Eager attention of transformers adds whatever it gets: bits would only tilt the scores by one."""
        model, results = make_reward_model(), []
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            with torch.no_grad():
                results.append(packed(model, RECORDS))
        torch.testing.assert_close(*results, atol=1e-5, rtol=0)


class TestScoring:
    QUERIES = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [])
    RESPONSES = ([11, 12], [13], [14], [], [15, 16], [17])

    def widths(self, model, monkeypatch):
        """Shapes of what the trunk embeds from here on."""
        seen = []
        embedding = model.get_input_embeddings()
        forward = embedding.forward
        monkeypatch.setattr(embedding, "forward", lambda ids: seen.append(tuple(ids.shape)) or forward(ids))
        return seen

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_responses_to_one_query_share_a_row_and_keep_reward_and_order(
        self, make_reward_model, monkeypatch, kind, attention
    ):
        model = make_reward_model(kind)
        model.set_attn_implementation(attention)
        pairs = list(zip(self.QUERIES, self.RESPONSES, strict=True))
        expected = torch.cat([score_token_ids(model, [query], [response]) for query, response in pairs])
        seen = self.widths(model, monkeypatch)
        rewards = score_token_ids(model, self.QUERIES, self.RESPONSES)
        assert seen == [(3, 9)]  # 6 + 2 + 1 + 0 tokens, 4 + 1 + 2, and 1
        torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)

    def test_a_pass_has_as_many_sequences_as_asked_for(self, make_reward_model, monkeypatch):
        model = make_reward_model()
        expected = score_token_ids(model, self.QUERIES, self.RESPONSES)
        seen = self.widths(model, monkeypatch)
        rewards = score_token_ids(model, self.QUERIES, self.RESPONSES, batch_size=2)
        assert seen == [(1, 9), (1, 7), (2, 6)]  # two of the first query, two of the second, the last two
        torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)

    def test_a_model_that_cannot_share_scores_separate_rows(self, monkeypatch):
        torch.manual_seed(0)
        config = BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2, num_labels=1)
        model = as_reward_model(AutoModelForSequenceClassification.from_config(config), fresh_head=True)
        expected = [score_token_ids(model, [[1, 2, 3]], [[k]]).item() for k in (4, 5)]
        seen = self.widths(model, monkeypatch)
        assert score_token_ids(model, [[1, 2, 3]] * 2, [[4], [5]]).tolist() == pytest.approx(expected, abs=1e-6)
        assert seen == [(2, 4)]

    def test_adapters_share_too(self, make_adapter, monkeypatch):
        model = make_adapter()
        seen = self.widths(model, monkeypatch)
        together = score_token_ids(model, [[1, 2, 3]] * 2, [[4], [5]])
        apart = torch.cat([score_token_ids(model, [[1, 2, 3]], [[k]]) for k in (4, 5)])
        assert seen == [(1, 5), (1, 4), (1, 4)]
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


class TestCheck:
    def test_ordinary_models_pass(self, make_reward_model):
        for kind in ("gpt2", "llama", "qwen2"):
            model = make_reward_model(kind)
            check_prefix_sharing(model)
            assert can_share_prefix(model)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (BloomConfig(), "its type 'bloom' is not one of those tested"),
            (MptConfig(), "its type 'mpt' is not one of those tested"),
            (GPTNeoConfig(), "its type 'gpt_neo' is not one of those tested"),
            (Gemma2Config(), "its type 'gemma2' is not one of those tested"),
            (Qwen3NextConfig(), "its type 'qwen3_next' is not one of those tested"),
            (FalconConfig(alibi=True), "`config.alibi` is True"),
            (MistralConfig(sliding_window=4096), "`config.sliding_window` is 4096"),
            (Qwen2Config(use_sliding_window=True, max_window_layers=1), "`config.layer_types` has sliding_attention"),
        ],
    )
    def test_a_model_that_cannot_be_served_is_refused(self, config, message):
        config._attn_implementation = "sdpa"
        model = SimpleNamespace(config=config)
        assert not can_share_prefix(model)
        with pytest.raises(ValueError, match=rf"{message}.*, or set `shared_prefix=False`\.$"):
            check_prefix_sharing(model)

    @pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "paged|sdpa", None])
    def test_attention_that_takes_no_mask_is_refused(self, attention):
        config = LlamaConfig()
        config._attn_implementation_internal = attention
        with pytest.raises(
            ValueError, match=r"its attention is .*; load it with `attn_implementation='sdpa'`, or set"
        ):
            check_prefix_sharing(SimpleNamespace(config=config))

    def test_a_window_that_is_switched_off_passes(self):
        config = Qwen2Config(use_sliding_window=False)
        config._attn_implementation = "sdpa"
        check_prefix_sharing(SimpleNamespace(config=config))


def test_the_benchmark_runs_both_ways_to_equal_losses(capsys):
    shape = parse_shape("8+4x3")
    steps = measure(shape, Size(layers=1, width=64, records=2), repeats=2, warm_up=1)
    capsys.readouterr()
    report(
        shape, {"shared": [(0.5, 1.0), (1.0, 1.0)], "copies": [(2.0, 1.0), (2.0, 1.25)]}, {"shared": 2, "copies": 4}
    )
    assert (
        "8 + 4 x 3  2.67 x (2.00 to 4.00), memory 0.50 x, losses differ by at most 2.5e-01" in capsys.readouterr().out
    )
    losses = {mode: [loss for _, loss in values] for mode, values in steps.items()}
    assert len(losses["shared"]) == 2 and losses["shared"] == pytest.approx(losses["copies"], abs=1e-6)
