"""What a finished policy is measured by: win rate, KL, true scores, samples, and the reward-KL frontier."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..metrics import WinRate, frontier_fraction, optimum_at, sampled_frontier
from ..reward_wrapper import KLEntropyReward
from .generation import Generator

POLICY_SAMPLES_PER_QUERY = 32
CURVE_BETAS = np.geomspace(0.1, 10.0, 41)


@dataclass(frozen=True)
class Judged:
    """Everything that can be said of a response.

    Args:
        score: The score PPO optimises, after cut and penalty.
        judge: The simulated labeller's score of a text, `f(prompts, completions) -> list[float]`.
        truth: The generator's own measure of a text, where there is one.
    """

    score: KLEntropyReward
    judge: Callable[..., list[float]]
    truth: Callable[[str], float] | None


def evaluate_policy(
    models: dict[str, Generator],
    judged: Judged,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[list[int]],
    *,
    best_of: int,
    frontier_queries: int,
    frontier_samples: int,
) -> dict[str, Any]:
    """Compare `zero_shot` and `policy` on held-out queries.

    Args:
        models: Generators of both; the policy's has the start model as its reference.
        queries: Raw queries; one response per model to each of them.
        best_of: Candidates of the `best_of_n` baseline, picked by the score PPO optimises.
        frontier_queries: How many of the queries the frontier is estimated on.
        frontier_samples: Samples of the start model per frontier query.

    Returns:
        `metrics` (plain values for `metrics.json`), `frontier` (curve and points), `samples` (rows, one per query).
    """
    prompts = tokenizer.batch_decode(queries)
    answers = {name: _answer(model, judged, tokenizer, queries, prompts) for name, model in models.items()}
    answers["best_of_n"] = _best_of(models["zero_shot"], judged, tokenizer, queries, prompts, best_of)
    win = WinRate().compute(predictions=answers["policy"]["judge"], references=answers["zero_shot"]["judge"])
    frontier = _frontier(models, judged, queries[:frontier_queries], frontier_samples)
    metrics: dict[str, Any] = {
        "win_rate": {"zero_shot": win},
        "kl": statistics.fmean(answers["policy"]["kl"]),
        "frontier": frontier["summary"],
        "true_score": {},
        "score": {name: statistics.fmean(answer["score"]) for name, answer in answers.items()},
        "valid_share": {name: statistics.fmean(answer["valid"]) for name, answer in answers.items()},
        "length": {name: statistics.fmean(answer["length"]) for name, answer in answers.items()},
    }
    for name, answer in answers.items():
        metrics["true_score"][name] = statistics.fmean(answer["judge"])
        if judged.truth is not None:
            metrics["true_score"][f"{name}_generator"] = statistics.fmean(map(judged.truth, answer["text"]))
    samples = [
        {
            "prompt": prompt,
            **{name: answers[name]["text"][i] for name in models},
            **{f"{name}_score": answers[name]["judge"][i] for name in models},
        }
        for i, prompt in enumerate(prompts)
    ]
    return {"metrics": metrics, "frontier": frontier["figure"], "samples": samples}


def _answer(
    model: Generator, judged: Judged, tokenizer: PreTrainedTokenizerBase, queries: list[list[int]], prompts: list[str]
) -> dict[str, list]:
    out = model.sample(queries, description="Evaluating")
    scored = judged.score.score(queries, out.responses, {"prompt": prompts})
    texts = _texts(tokenizer, out.responses, scored.lengths)
    return {
        "text": texts,
        "judge": judged.judge(prompts, texts),
        "score": scored.scores.tolist(),
        "valid": scored.valid.float().tolist(),
        "length": scored.lengths.float().tolist(),
        "kl": out.kl.tolist(),
    }


def _best_of(
    model: Generator,
    judged: Judged,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[list[int]],
    prompts: list[str],
    count: int,
) -> dict[str, list]:
    """The best of `count` samples of the start model by the score PPO optimises: what reranking alone would give."""
    rows = [_answer(model, judged, tokenizer, queries, prompts) for _ in range(count)]
    best = [max(range(count), key=scores.__getitem__) for scores in zip(*(row["score"] for row in rows), strict=True)]
    return {key: [rows[k][key][i] for i, k in enumerate(best)] for key in rows[0]}


def _frontier(
    models: dict[str, Generator], judged: Judged, queries: list[list[int]], samples_per_query: int
) -> dict[str, Any]:
    """The optimum at the policy's KL, and where the policy stands, all on the same queries."""
    _, start = _many(models["zero_shot"], judged, queries, samples_per_query, "Sampling the frontier")
    kl, reached = _many(models["policy"], judged, queries, POLICY_SAMPLES_PER_QUERY, "Sampling the policy")
    policy_kl, policy_reward, baseline = kl.mean().item(), reached.mean().item(), start.mean().item()
    optimum = optimum_at(start.numpy(), policy_kl)
    curve = sampled_frontier(start.numpy(), CURVE_BETAS)
    rows = [row for row, trusted in zip(curve.rows(), curve.trusted, strict=True) if trusted]
    summary = {
        "fraction": frontier_fraction(policy_reward, baseline, optimum.reward),
        "reached": policy_reward,
        "baseline": baseline,
        "optimum": optimum.reward,
        "kl": policy_kl,
        "effective_samples": optimum.effective_samples,
        "reason": optimum.reason,
    }
    points = [
        {"name": "zero_shot", "kl": 0.0, "reward": baseline},
        {"name": "policy", "kl": policy_kl, "reward": policy_reward},
    ]
    return {"summary": summary, "figure": {"kl_penalty_curve": rows, "points": points}}


def _many(
    model: Generator, judged: Judged, queries: list[list[int]], count: int, description: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and score `[Q, count]` of `count` responses to each query."""
    repeated = [query for query in queries for _ in range(count)]
    out = model.sample(queries, count=count, description=description)
    scores = judged.score.score(repeated, out.responses, {}).scores
    return out.kl.view(-1, count), scores.view(-1, count)


def _texts(tokenizer: PreTrainedTokenizerBase, responses: torch.Tensor, lengths: torch.Tensor) -> list[str]:
    cut = [row[:n] for row, n in zip(responses.tolist(), lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(cut, skip_special_tokens=True)
