"""The mathematics against an independent numpy version, and against stock TRL where both mean the same thing.

Deliberate differences from TRL have a test of their own that shows both numbers. TRL computes losses, rewards and
advantages inside `PPOTrainer.train`; `stock` runs those statements as they are installed. That the loss for two
candidates is `RewardTrainer`'s is in test_reward_trainer.py.

Axis letters: B responses, K candidates, T response tokens.
"""

import ast
import inspect
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trl_ziegler import functional as fn
from trl_ziegler._compat import PPOTrainer
from trl_ziegler.kl_control import AdaptiveKLController
from trl_ziegler.reward_model import as_reward_model, score_token_ids
from trl_ziegler.rollout import Rollout, micro_batches

STOCK = sys.modules[PPOTrainer.__module__]
ROWS, TOKENS = 5, 7
SETTINGS = SimpleNamespace(
    gamma=0.9, lam=0.8, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, kl_coef=0.3, kl_estimator="k1",
    whiten_rewards=False, missing_eos_penalty=1.0,
)  # fmt: skip


def stock(first: str, last: str, **names: Any) -> dict[str, Any]:
    """Run TRL's own statements, from the one that writes `first` to the last of its block that writes `last`.

    Args:
        names: The variables they read.

    Returns:
        All variables afterwards.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(PPOTrainer.train)))
    blocks = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    block = next(block for block in blocks if any(first in written(each) for each in block))  # the outermost
    start = next(i for i, each in enumerate(block) if first in written(each))
    end = max(i for i, each in enumerate(block) if any(last in written(part) for part in ast.walk(each)))
    module = ast.fix_missing_locations(ast.Module(block[start : end + 1], type_ignores=[]))
    space = {**vars(STOCK), "args": SETTINGS, **names}
    exec(compile(module, STOCK.__file__, "exec"), space)
    return space


def written(node: ast.AST) -> set[str]:
    """Names that one statement assigns, or assigns an entry of."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    roots = [target.value if isinstance(target, ast.Subscript) else target for target in targets]
    return {root.id for root in roots if isinstance(root, ast.Name)}


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def assert_equals(ours: torch.Tensor, expected: Any) -> None:
    """The same numbers, in the dtype's precision, and the dtype kept."""
    rtol = 1e-11 if ours.dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(ours.numpy(), np.asarray(expected, dtype=float), rtol=rtol, atol=rtol)


def double(*tensors: torch.Tensor) -> list[np.ndarray]:
    """The tensors' values as they are, in numpy's float64."""
    return [tensor.double().numpy() for tensor in tensors]


# ---- Against numpy --------------------------------------------------------------------------------------------------


def whiten_numpy(values, shift_mean):
    mean = sum(values.flat) / values.size
    variance = sum((x - mean) ** 2 for x in values.flat) / values.size
    whitened = np.array([[(x - mean) / (variance + 1e-8) ** 0.5 for x in row] for row in values])
    return whitened if shift_mean else whitened + mean


def gae_numpy(rewards, values, gamma, lam):
    """Backwards, one token at a time."""
    advantages = np.zeros_like(rewards)
    for b, t in np.ndindex(rewards.shape):
        discount = 1.0
        for s in range(t, rewards.shape[1]):
            after = values[b, s + 1] if s + 1 < rewards.shape[1] else 0.0
            advantages[b, t] += discount * (rewards[b, s] + gamma * after - values[b, s])
            discount *= gamma * lam
    return advantages


def clipped(x, low, high):
    return low if x < low else high if x > high else x


def losses_numpy(new, old, advantages, values_new, values_old, returns, clip=0.2):
    """Policy and value loss, one token at a time."""
    policy, value = [], []
    for i in np.ndindex(new.shape):
        ratio = np.exp(new[i] - old[i])
        policy.append(max(-advantages[i] * ratio, -advantages[i] * clipped(ratio, 1 - clip, 1 + clip)))
        near = clipped(values_new[i], values_old[i] - clip, values_old[i] + clip)
        value.append(max((values_new[i] - returns[i]) ** 2, (near - returns[i]) ** 2) / 2)
    return sum(policy) / len(policy), sum(value) / len(value)


def six(dtype) -> list[torch.Tensor]:
    """Log-probabilities new and old, advantages, values new and old, returns: `[B, T]` each."""
    new, old, advantages, values, values_old, returns = (normal(ROWS, TOKENS, seed=s, dtype=dtype) for s in range(6))
    return [0.3 * new - 2, 0.3 * old - 2, advantages, 0.4 * values, 0.4 * values_old, returns]


def test_shaping_equals_numpy(dtype):
    scores, logprobs, reference = (
        normal(ROWS, dtype=dtype),
        *(normal(ROWS, TOKENS, seed=s, dtype=dtype) for s in (1, 2)),
    )
    out = fn.kl_entropy_rewards(scores, logprobs, reference, 0.3)
    y, p, r = double(scores, logprobs, reference)
    expected = np.array([[-0.3 * (p[b, t] - r[b, t]) for t in range(TOKENS)] for b in range(ROWS)])
    assert_equals(out.kl_reward, expected)
    expected[:, TOKENS - 1] += y
    assert_equals(out.rewards, expected)
    assert_equals(out.entropy_bonus, -0.3 * p)
    assert out.rewards.dtype == dtype


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_numpy(dtype, shift_mean):
    values = 3 * normal(ROWS, TOKENS, dtype=dtype) + 2
    assert_equals(fn.whiten(values, shift_mean=shift_mean), whiten_numpy(*double(values), shift_mean))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
def test_advantages_equal_numpy(dtype, gamma, lam):
    rewards, values = normal(ROWS, TOKENS, dtype=dtype), normal(ROWS, TOKENS, seed=1, dtype=dtype)
    advantages, returns = fn.gae(rewards, values, gamma=gamma, lam=lam)
    expected = gae_numpy(*double(rewards, values), gamma, lam)
    assert_equals(advantages, expected)
    assert_equals(returns, expected + values.double().numpy())


def test_both_losses_equal_numpy(dtype):
    new, old, advantages, values, values_old, returns = six(dtype)
    policy, value = losses_numpy(*double(new, old, advantages, values, values_old, returns))
    assert_equals(fn.policy_loss(new, old, advantages), policy)
    assert_equals(fn.value_loss(values, values_old, returns), value)


def test_best_of_k_loss_equals_numpy(dtype):
    rewards, labels = 2 * normal(6, 4, dtype=dtype), torch.tensor([0, 1, 2, 3, 3, 0])
    rows = double(rewards)[0]
    expected = [-np.log(np.exp(row[b]) / np.exp(row).sum()) for row, b in zip(rows, labels.tolist(), strict=True)]
    assert_equals(fn.best_of_k_loss(rewards, labels), sum(expected) / 6)


def test_gain_and_bias_equal_numpy(dtype):
    raw = 3 * normal(40, dtype=dtype) - 5
    values = double(raw)[0]
    mean = values.sum() / 40
    gain = 1.5 / ((values**2).sum() / 40 - mean**2) ** 0.5
    ours = torch.stack(fn.gain_and_bias(raw, target_mean=0.25, target_std=1.5))
    assert_equals(ours, [gain, 0.25 - gain * mean])


def test_controller_equals_numpy():
    beta, controller = 0.15, AdaptiveKLController(0.15, 6.0, horizon=10_000)
    for kl in 6 + 4 * normal(200).numpy():
        beta *= 1 + clipped((kl - 6.0) / 6.0, -0.2, 0.2) * 512 / 10_000
        controller.update(float(kl), 512)
        assert controller.value == pytest.approx(beta, rel=1e-12)
    assert beta != pytest.approx(0.15, rel=0.01)


# ---- The same numbers as stock TRL ----------------------------------------------------------------------------------

NOTHING_MASKED = torch.zeros(ROWS, TOKENS, dtype=torch.bool)


def test_both_losses_are_trls(dtype):
    new, old, advantages, values, values_old, returns = six(dtype)
    theirs = stock(
        "vpredclipped", "loss", vpred=values, mb_values=values_old, mb_return=returns, new_logprobs=new,
        mb_logprobs=old, mb_advantage=advantages, padding_mask=NOTHING_MASKED, padding_mask_p1=NOTHING_MASKED,
        micro_batch_inds=slice(None),
    )  # fmt: skip
    policy, value = fn.policy_loss(new, old, advantages), fn.value_loss(values, values_old, returns)
    assert_equals(policy, theirs["pg_loss"])
    assert_equals(value, theirs["vf_loss"])
    assert_equals(policy + 0.1 * value, theirs["loss"])
    assert_equals(fn.value_clip_fraction(values, values_old, returns), theirs["vf_clipfrac"])
    assert theirs["vf_clipfrac"] > 0.1  # the clip binds somewhere


def test_advantages_and_returns_are_trls_up_to_the_whitening(dtype):
    rewards, values = normal(ROWS, TOKENS, dtype=dtype), normal(ROWS, TOKENS, seed=1, dtype=dtype)
    theirs = stock(
        "lastgaelam", "advantages", rewards=rewards, values=values, responses=rewards, padding_mask=NOTHING_MASKED
    )
    advantages, returns = fn.gae(rewards, values, gamma=SETTINGS.gamma, lam=SETTINGS.lam)
    assert_equals(returns, theirs["returns"])
    n = ROWS * TOKENS
    expected = fn.whiten(advantages) * ((n - 1) / n) ** 0.5  # up to the 1e-8 under either root
    torch.testing.assert_close(theirs["advantages"], expected, rtol=0, atol=1e-6)


def stock_rewards(scores, logprobs, reference, ends) -> torch.Tensor:
    """TRL's token rewards `[B, T]` of responses whose last token has the index `ends [B]`."""
    sequence_lengths = torch.tensor(ends)
    positions = torch.arange(TOKENS).expand(ROWS, -1)
    names = {
        "scores": scores, "logprobs": logprobs, "ref_logprobs": reference,
        "sequence_lengths": sequence_lengths, "sequence_lengths_p1": sequence_lengths + 1,
        "padding_mask_p1": positions > sequence_lengths[:, None] + 1,
    }  # fmt: skip
    return stock("logr", "rewards", **names)["rewards"]


def test_rewards_of_whole_responses_are_trls(dtype):
    scores, logprobs, reference = (
        normal(ROWS, dtype=dtype),
        *(normal(ROWS, TOKENS, seed=s, dtype=dtype) for s in (1, 2)),
    )
    ours = fn.kl_entropy_rewards(scores, logprobs, reference, SETTINGS.kl_coef).rewards
    assert_equals(ours, stock_rewards(scores, logprobs, reference, [TOKENS - 1] * ROWS))


def test_scores_of_a_reward_model_are_those_of_trls_get_reward(make_classifier):
    model = make_classifier().eval()
    torch.nn.init.normal_(model.score.weight)
    queries, responses = [[7, 8, 9], [4, 5, 6]], [[1, 2, 3], [1, 2]]
    pad = 99  # TRL reads the length off a PAD id that must not occur in the text
    ids = torch.tensor([[7, 8, 9, 1, 2, 3, pad], [4, 5, 6, 1, 2, pad, pad]])
    with torch.no_grad():
        _, theirs, lengths = STOCK.get_reward(model, ids, pad, 3)
    assert lengths.tolist() == [5, 4]
    ours = score_token_ids(as_reward_model(model), queries, responses)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    left = torch.tensor([[pad, 7, 8, 9, 1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(STOCK.get_reward(model, left, pad, 4)[1], ours[:1], atol=1e-5, rtol=1e-5)


def test_cut_from_the_first_index_on_is_trls():
    responses = torch.tensor([[9, 1, 9, 2], [1, 2, 9, 9], [1, 1, 1, 1]])
    cut, _ = fn.truncate_after(responses, 9, 0, 50259)
    assert torch.equal(cut, STOCK.truncate_response(9, 50259, responses))


# ---- Deliberate differences -----------------------------------------------------------------------------------------


def test_whitening_divides_by_n_where_trl_divides_by_n_minus_1():
    """Ours is the reference's population variance."""
    values = torch.tensor([[0.0, 0.0, 0.0, 4.0]])
    ours = fn.whiten(values, shift_mean=False)
    theirs = STOCK.masked_whiten(values, torch.ones_like(values, dtype=torch.bool), shift_mean=False)
    torch.testing.assert_close(ours, torch.tensor([[0.42265, 0.42265, 0.42265, 2.73205]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs, torch.tensor([[0.5, 0.5, 0.5, 2.5]]), atol=1e-5, rtol=0)


def test_score_lands_on_the_last_token_where_trl_puts_it_one_past_the_end():
    """The fixed-length regime has it at T-1 whatever the cut, the other one on the last token kept."""
    scores, zeros = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.zeros(ROWS, TOKENS)
    ends = [2, 2, 5, 5, TOKENS - 1]
    kept = torch.arange(TOKENS) <= torch.tensor(ends)[:, None]
    fixed = fn.kl_entropy_rewards(scores, zeros, zeros, 0.3).rewards
    stopped = fn.kl_entropy_rewards(scores, zeros, zeros, 0.3, mask=kept).rewards
    theirs = stock_rewards(scores, zeros, zeros, ends)
    assert [row.nonzero().flatten().tolist() for row in fixed] == [[6]] * 5
    assert [row.nonzero().flatten().tolist() for row in stopped] == [[2], [2], [5], [5], [6]]
    assert [row.nonzero().flatten().tolist() for row in theirs] == [[3], [3], [6], [6], [6]]
    for rewards in (fixed, stopped, theirs):
        assert torch.equal(rewards.sum(1), scores)


def test_penalty_replaces_the_score_where_trl_subtracts_it():
    """Also where that raises the score."""
    scores, valid = torch.tensor([3.2, -5.0, 3.2]), torch.tensor([False, False, True])
    ours = fn.apply_penalty(scores, valid, -1.0)
    eos = 7
    theirs = stock(
        "contain_eos_token", "scores", scores=scores.clone(),
        postprocessed_responses=torch.tensor([[1, 2], [1, 2], [1, eos]]),
        self=SimpleNamespace(args=SETTINGS, processing_class=SimpleNamespace(eos_token_id=eos)),
    )["scores"]  # fmt: skip
    torch.testing.assert_close(ours, torch.tensor([-1.0, -1.0, 3.2]))
    torch.testing.assert_close(theirs, torch.tensor([2.2, -6.0, 3.2]))


def test_cut_counts_from_an_index_where_trl_takes_the_first_token_anywhere():
    response = torch.ones(1, 24, dtype=torch.long)
    response[0, [3, 15, 20, 22]] = 13
    ours, valid = fn.truncate_after(response, 13, 16, 50259)
    theirs = STOCK.truncate_response(13, 50259, response)
    assert valid.all()
    assert [int((cut == 50259).int().argmax()) for cut in (ours, theirs)] == [21, 4]


def test_each_minibatch_is_whitened_where_trl_whitens_the_batch_once():
    """And again in every epoch, over another draw of episodes."""
    rewards = normal(8, TOKENS, dtype=torch.float32) * torch.arange(1.0, 9)[:, None]
    rollout = Rollout(
        context_ids=torch.arange(8)[:, None], context_mask=torch.ones(8, 1, dtype=torch.long),
        responses=torch.zeros(8, TOKENS, dtype=torch.long), mask=torch.ones(8, TOKENS, dtype=torch.bool),
        logprobs=torch.zeros(8, TOKENS), values=torch.zeros(8, TOKENS), rewards=rewards,
    )  # fmt: skip
    parts = list(
        micro_batches(
            rollout, epochs=2, mini_batch_size=4, micro_batch_size=4, gamma=SETTINGS.gamma, lam=SETTINGS.lam,
            whiten_rewards=False, gather=None, generator=torch.Generator().manual_seed(0),
        )
    )  # fmt: skip
    theirs = stock(
        "lastgaelam", "advantages", rewards=rewards, values=rollout.values, responses=rewards,
        padding_mask=torch.zeros(8, TOKENS, dtype=torch.bool),
    )["advantages"]  # fmt: skip
    assert theirs.mean().abs() < 1e-6
    for part in parts:
        theirs_here = theirs[part.rollout.context_ids[:, 0]]
        assert part.advantages.mean().abs() < 1e-6 < theirs_here.mean().abs()
        assert part.advantages.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        assert theirs_here.std(correction=0).item() != pytest.approx(1, abs=1e-2)
    first_episode = [part.advantages[part.rollout.context_ids[:, 0] == 0] for part in parts]
    of_each_epoch = [rows for rows in first_episode if len(rows)]
    assert len(of_each_epoch) == 2 and not torch.allclose(*of_each_epoch)
