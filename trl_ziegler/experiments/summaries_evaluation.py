"""What summarizers are measured by: win rates, ROUGE, what they copy and invent, and who predicts labels.

B queries; every model, rule or person has one summary of each.
"""

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..labelers import ReferenceOverlap
from ..metrics import BestOfKAccuracy, Copying, LengthControlledWinRate, Rouge, WinRate
from ..reward_model import score_token_ids
from ..tasks import BoundTask, part_ids
from .generation import Generator
from .summaries_records import Record
from .summaries_worlds import Judge


@dataclass(frozen=True)
class Summaries:
    """One author's summaries of B documents.

    Args:
        texts: Stripped.
        ids: As the reward model reads them, up to and including the token that ends a summary.
        valid: Whether each ended by the task's rule; `None` for texts that were not sampled.
        kl: log(pi/rho) of each response in nats; `None` where there is no rho.
    """

    texts: list[str]
    ids: list[list[int]]
    valid: list[bool] | None = None
    kl: list[float] | None = None


def sampled(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, queries: list[list[int]], *, description: str
) -> Summaries:
    """A model's summaries, cut by the task's rule."""
    out = generator.sample(queries, description=description)
    lengths, valid = generator.task.cut(out.responses)
    ids = [row[:n] for row, n in zip(out.responses.tolist(), lengths.tolist(), strict=True)]
    kl = None if generator.reference is None else out.kl.tolist()
    return Summaries(as_texts(tokenizer, ids), ids, valid.tolist(), kl)


def best_of_n(
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[list[int]],
    score: Callable[[Summaries], list[float]],
    count: int,
) -> Summaries:
    """The best of `count` samples by a score: what reranking alone would give."""
    draws = [sampled(generator, tokenizer, queries, description="Sampling the best of n") for _ in range(count)]
    scores = [score(draw) for draw in draws]
    best = [max(range(count), key=column.__getitem__) for column in zip(*scores, strict=True)]
    ids = [draws[k].ids[i] for i, k in enumerate(best)]
    return Summaries(as_texts(tokenizer, ids), ids)


def written(tokenizer: PreTrainedTokenizerBase, task: BoundTask, texts: Sequence[str]) -> Summaries:
    """Texts of a rule or a person, as a model would have written them."""
    stop = [] if task.truncate_id is None else [task.truncate_id]
    return Summaries(list(texts), [part_ids(tokenizer, f" {text}") + stop for text in texts])


def as_texts(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]) -> list[str]:
    """Decoded, without special tokens and outer white space."""
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


class SummaryJudge:
    """Scores summaries of the same B records: by the simulated labeller, and by what PPO was trained on.

    Args:
        records: `prompt_ids`, `prompt`, `document`, `reference` of each query.
        judge: The labeller's score without noise.
        reward_model: What PPO was trained on; `None` for the judge itself.
        facts: From a text to the facts it states, where that is known.
    """

    def __init__(
        self,
        records: Sequence[Record],
        judge: Judge,
        reward_model: PreTrainedModel | None,
        facts: Callable[[str], Iterable[Hashable]] | None,
    ) -> None:
        self.records, self.judge, self.reward_model, self.facts = records, judge, reward_model, facts
        self.references = [record["reference"] for record in records]

    def true_scores(self, summaries: Summaries) -> list[float]:
        """The labeller's score of each."""
        prompts = [record["prompt"] for record in self.records]
        return self.judge(prompts, summaries.texts, reference=self.references)

    def rewards(self, summaries: Summaries) -> list[float]:
        """The reward model's score of each, before any penalty."""
        if self.reward_model is None:
            return self.true_scores(summaries)
        queries = [record["prompt_ids"] for record in self.records]
        with torch.no_grad():
            return score_token_ids(self.reward_model, queries, summaries.ids).tolist()

    def copying(self, summaries: Summaries) -> dict[str, Any]:
        """The result of `Copying` against the documents as the models read them."""
        known = {} if self.facts is None else {"stated_facts": self.facts, "true_facts": self.facts}
        sources = [record["prompt"] for record in self.records]
        return Copying().compute(predictions=summaries.texts, sources=sources, **known)


def compare(authors: Mapping[str, Summaries], judge: SummaryJudge) -> tuple[dict[str, Any], list[Record]]:
    """The figures of all authors, the win rates of `policy` against the others, and the texts side by side.

    Returns:
        `(metrics, samples)`: plain values for `metrics.json`, and a row per query for `samples.jsonl`.
    """
    true = {name: judge.true_scores(summaries) for name, summaries in authors.items()}
    metrics: dict[str, Any] = {
        "win_rate": {},
        "win_rate_at_equal_length": {},
        "true_score": {name: statistics.fmean(scores) for name, scores in true.items()},
        "score": {name: statistics.fmean(judge.rewards(summaries)) for name, summaries in authors.items()},
        "length": {name: statistics.fmean(map(len, summaries.ids)) for name, summaries in authors.items()},
        "valid_share": {name: statistics.fmean(s.valid) for name, s in authors.items() if s.valid is not None},
        "kl_by_model": {name: statistics.fmean(s.kl) for name, s in authors.items() if s.kl is not None},
        "rouge": {
            name: Rouge().compute(predictions=summaries.texts, references=judge.references)
            for name, summaries in authors.items()
        },
        "copying": {name: judge.copying(summaries) for name, summaries in authors.items()},
    }
    metrics["kl"] = metrics["kl_by_model"]["policy"]
    lengths = {name: [max(len(ids), 1) for ids in summaries.ids] for name, summaries in authors.items()}
    for name in authors:
        if name != "policy":
            pair = {"predictions": true["policy"], "references": true[name]}
            metrics["win_rate"][name] = WinRate().compute(**pair)
            metrics["win_rate_at_equal_length"][name] = LengthControlledWinRate().compute(
                **pair, prediction_lengths=lengths["policy"], reference_lengths=lengths[name]
            )
    samples = [
        {
            "prompt": record["prompt"],
            **{name: summaries.texts[i] for name, summaries in authors.items()},
            **{f"{name}_score": true[name][i] for name in authors},
        }
        for i, record in enumerate(judge.records)
    ]
    return metrics, samples


def predictors_of_labels(rows: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """How well ROUGE with the reference and length (longer is better, shorter is better) predict labels.

    Args:
        rows: `prompt`, `completions` (K texts), `reference`, `label`.

    Returns:
        The result of `BestOfKAccuracy` for `rouge`, `longest` and `shortest`, beside which stands the reward model's.
    """
    overlap = ReferenceOverlap()
    rouge = [
        overlap([row["prompt"]] * len(texts), texts, reference=[row["reference"]] * len(texts))
        for row in rows
        for texts in [row["completions"]]
    ]
    words = [[float(len(text.split())) for text in row["completions"]] for row in rows]
    scores = {"rouge": rouge, "longest": words, "shortest": [[-n for n in counts] for counts in words]}
    labels = [row["label"] for row in rows]
    return {name: BestOfKAccuracy().compute(predictions=s, references=labels) for name, s in scores.items()}
