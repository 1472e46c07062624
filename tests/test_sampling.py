"""The sampler draws from exactly the tempered distribution, and its log-probabilities are that distribution's."""

import pytest
import torch

from trl_ziegler import sampling
from trl_ziegler.actor_critic import ActorCritic, response_logits
from trl_ziegler.functional import token_logprobs_and_entropy
from trl_ziegler.queries import with_responses
from trl_ziegler.sampling import draw, sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    n = 20_000
    drawn, logprobs = draw(probabilities.log().expand(n, 4), seeded())
    torch.testing.assert_close(logprobs, probabilities.log()[drawn])
    counts = torch.bincount(drawn, minlength=4).double()
    expected = probabilities.double() * n
    assert counts[1] == 0
    present = [0, 2, 3]
    chi_square = ((counts - expected)[present] ** 2 / expected[present]).sum()
    assert chi_square < 13.8  # 99.9 % quantile at two degrees of freedom


@pytest.mark.parametrize("block", [3, 4])
def test_draws_over_several_blocks_follow_the_distribution(monkeypatch, block):
    """Tokens without probability at the ends of blocks, and a whole block of them."""
    monkeypatch.setattr(sampling, "BLOCK", block)
    probabilities = torch.tensor([0.1, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.15, 0.25])
    n = 20_000
    drawn, logprobs = draw(probabilities.log().expand(n, 11), seeded())
    torch.testing.assert_close(logprobs, probabilities.log()[drawn])
    counts, expected = torch.bincount(drawn, minlength=11).double(), probabilities.double() * n
    present = probabilities > 0
    assert not counts[~present].any()
    chi_square = ((counts - expected)[present] ** 2 / expected[present]).sum()
    assert chi_square < 18.5  # 99.9 % quantile at four degrees of freedom


def test_a_row_of_nan_shows_in_its_log_probability():
    drawn, logprobs = draw(torch.tensor([[0.0, float("nan"), 1.0], [0.0, 0.0, 0.0]]), seeded())
    assert 0 <= drawn[0] < 3 and logprobs.isnan().tolist() == [True, False]


def test_a_uniform_number_at_the_very_end_still_draws_a_possible_token(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))
    logits = torch.tensor([[0.0, 1.0, float("-inf"), float("-inf")]])
    assert draw(logits, seeded())[0].item() == 1


@pytest.fixture
def context():
    ids = torch.tensor([[5, 6, 7], [0, 0, 8]])
    return ids, torch.tensor([[1, 1, 1], [0, 0, 1]])


def draw_from(model, context, **options):
    settings = {"response_length": 5, "temperature": 0.7, "generator": seeded(), **options}
    return sample(ActorCritic(model).eval(), *context, **settings)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_log_probabilities_are_the_training_pass_s(make_causal_lm, context, kind):
    model = make_causal_lm(kind).eval()
    out = draw_from(model, context)
    logits = response_logits(model, *with_responses(*context, out.responses), 5)
    logprobs, _ = token_logprobs_and_entropy(logits, out.responses, temperature=0.7)
    assert ((logprobs - out.logprobs).exp() - 1).abs().max() < 1e-4


def test_padding_and_its_filler_change_nothing(make_causal_lm, context):
    model = make_causal_lm().eval()
    ids, mask = context
    out = draw_from(model, (ids[1:], mask[1:]))
    refilled = draw_from(model, (ids[1:].masked_fill(mask[1:] == 0, 250), mask[1:]))
    unpadded = draw_from(model, (ids[1:, 2:], mask[1:, 2:]))
    for other in (refilled, unpadded):
        assert torch.equal(other.responses, out.responses)
        torch.testing.assert_close(other.logprobs, out.logprobs, atol=1e-5, rtol=0)


def test_always_t_tokens_even_if_eos_is_likely(make_causal_lm, context, tokenizer):
    model = make_causal_lm()
    with torch.no_grad():  # a bias towards EOS that survives the tied embedding
        model.transformer.ln_f.bias.copy_(1000 * model.lm_head.weight[tokenizer.eos_token_id])
    out = draw_from(model, context)
    assert out.responses.shape == (2, 5)
    assert (out.responses == tokenizer.eos_token_id).any()


def test_generation_config_has_no_say(make_causal_lm, context):
    model = make_causal_lm()
    plain = draw_from(model, context)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 1
    assert torch.equal(draw_from(model, context).responses, plain.responses)


def test_stopping_early_leaves_the_tokens_before_the_stop_unchanged(make_causal_lm, context):
    model = make_causal_lm()
    full = draw_from(model, context, response_length=12)
    stop = int(full.responses[0, 3])
    early = draw_from(model, context, response_length=12, stop_token_id=stop, stop_after=2)
    for row in range(2):
        hits = [t for t in range(2, 12) if full.responses[row, t] == stop]
        end = hits[0] + 1 if hits else 12
        assert torch.equal(early.responses[row, :end], full.responses[row, :end])
        assert not early.responses[row, end:].any()
        assert not early.logprobs[row, end:].any()


def test_passes_made_for_other_processes_change_nothing(make_causal_lm, context, monkeypatch):
    model = ActorCritic(make_causal_lm()).eval()
    plain, steps = model.step, []
    monkeypatch.setattr(model, "step", lambda *args: steps.append(args) or plain(*args))
    ids, mask = (tensor[:1] for tensor in context)
    rule = {"response_length": 12, "temperature": 1.0}
    rule["stop_token_id"] = int(sample(model, ids, mask, generator=seeded(), **rule).responses[0, 1])
    asked, outputs, states = [], [], []
    for others in (lambda here: here, lambda here: asked.append(here) or len(asked) < 9):
        generator = seeded()
        steps.clear()
        outputs.append(sample(model, ids, mask, generator=generator, any_process=others, **rule))
        states.append(generator.get_state())
    assert len(steps) == 9 and asked[0] and not asked[-1]
    assert all(torch.equal(alone, together) for alone, together in zip(*outputs, strict=True))
    assert torch.equal(*states)  # the next responses do not depend on the others either


def test_values_are_read_before_each_token(make_causal_lm, context):
    model = ActorCritic(make_causal_lm()).eval()
    torch.nn.init.normal_(model.value_head.weight)
    out = sample(model, *context, response_length=4, temperature=1.0, generator=seeded())
    values = model(*with_responses(*context, out.responses), 4).values
    torch.testing.assert_close(out.values, values, atol=1e-5, rtol=0)
    changed = out.responses.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 250
    moved = (model(*with_responses(*context, changed), 4).values - values).abs() > 1e-6
    assert moved.any(0).tolist() == [False, False, False, True]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_several_samples_behind_one_prefill_have_the_right_log_probabilities(make_causal_lm, context, kind):
    model = make_causal_lm(kind).eval()
    out = draw_from(model, context, samples_per_query=3)
    assert out.responses.shape == (6, 5)
    ids, mask = (tensor.repeat_interleave(3, 0) for tensor in context)
    logits = response_logits(model, *with_responses(ids, mask, out.responses), 5)
    logprobs, _ = token_logprobs_and_entropy(logits, out.responses, temperature=0.7)
    torch.testing.assert_close(out.logprobs, logprobs, atol=1e-5, rtol=0)
    assert len({tuple(row) for row in out.responses.tolist()}) > 2


def test_the_prompt_is_computed_once_per_query(make_causal_lm, context):
    model = make_causal_lm()
    widths = []
    model.transformer.h[0].register_forward_pre_hook(lambda module, args: widths.append(tuple(args[0].shape[:2])))
    draw_from(model, context, samples_per_query=4, response_length=3)
    assert widths == [(2, 3), (8, 1), (8, 1)]
