"""Evaluation by sampling: the rollout statistics of held-out prompts, the win rate against the reference, and a table
of what the policy says.

Axis letters: B queries, T response tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from .ppo_passes import ModelPasses, evaluating
from .ppo_statistics import rollout_statistics
from .queries import extra_columns, prepare_queries, raw_queries
from .reward_wrapper import KLEntropyReward, Scored, ShapedRewards
from .sampling import Samples, sample

RANK_SEED_OFFSET = 100003  # openai/lm-human-preferences, utils/core.py:set_mpi_seed
POLICY_STREAM, REFERENCE_STREAM = 1, 2  # stream 0 is training's
TABLE_ROWS = 5


def wins(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """1 where our score `[B]` is the higher, 0 where theirs `[B]` is, 1/2 at a tie; their mean is the win rate."""
    return ((ours > theirs).float() + (ours >= theirs).float()) / 2


class SampledEvaluation(ModelPasses):
    """The part of `ZieglerPPOTrainer` that looks at held-out prompts.

    Expects the attributes `reward`, `_query_options` and the method `_respond`.
    """

    reward: KLEntropyReward
    _query_options: dict[str, Any]

    def _respond(
        self, batch: dict[str, Any], generator: torch.Generator, count: int = 1
    ) -> tuple[Samples, torch.Tensor, Scored, ShapedRewards]:
        raise NotImplementedError

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sample one response per held-out query and report the rollout statistics, as `eval_objective/kl` and so on.

        `eval_win_rate` is the share of queries on which the score of the policy's response is above that of a response
        of the reference, ties counting half. The generators are seeded anew each time: evaluations are comparable, and
        they leave training's samples alone.
        """
        self.callback_handler.eval_dataloader = dataloader  # the progress bar asks it for its length
        generator = self._evaluation_generator(POLICY_STREAM)
        columns: dict[str, list[torch.Tensor]] = defaultdict(list)
        for batch, reference_scores in zip(dataloader, self._reference_scores(dataloader), strict=True):
            samples, ref_logprobs, scored, shaped = self._respond(batch, generator)
            episodes = rollout_statistics(samples.logprobs, ref_logprobs, scored, shaped, self.reward.names)
            episodes["win_rate"] = wins(scored.scores, reference_scores)
            for name, column in episodes.items():
                columns[name].append(self.accelerator.gather_for_metrics(column.float().to(self.args.device)))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        metrics = {f"{metric_key_prefix}_{name}": float(column.nanmean()) for name, column in joined.items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(joined["win_rate"]))

    def _reference_scores(self, dataloader: DataLoader) -> list[torch.Tensor]:
        """The scores `[B]` of the reference's responses to each of this process's batches.

        Sampled once per set: neither the reference nor the seed nor the prompts ever change.
        """
        kept, data = self._kept_reference_scores, dataloader.dataset
        if data not in kept:
            generator = self._evaluation_generator(REFERENCE_STREAM)
            kept[data] = [self._score_reference(batch, generator) for batch in dataloader]
        return kept[data]

    @cached_property
    def _kept_reference_scores(self) -> WeakKeyDictionary[Any, list[torch.Tensor]]:
        return WeakKeyDictionary()

    def forget_reference_scores(self) -> None:
        """Have the next evaluation score the reference's responses again; to be called after a reward has changed."""
        self._kept_reference_scores.clear()

    def _score_reference(self, batch: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
        parts = []
        with evaluating(self.model), self._autocast(), self._reference() as reference:
            for ids, mask in self._chunks(batch["input_ids"], batch["attention_mask"]):
                part = sample(
                    reference, ids, mask, generator=generator, any_process=self._any_process, **self.task.sampling
                )
                parts.append(part.responses)
        return self.reward.score(raw_queries(self.task, batch), torch.cat(parts), extra_columns(batch)).scores

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """`Trainer.evaluate` on prompts; a set that was not given to the constructor is tokenised first."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepare_eval(eval_dataset, self.processing_class)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """`Trainer.predict` on prompts: the metrics of `evaluate`. There are no predictions beside them."""
        return super().predict(self._prepare_eval(test_dataset, self.processing_class), ignore_keys, metric_key_prefix)

    def _prepare_eval(self, data: Any, tokenizer: PreTrainedTokenizerBase, name: str = "eval_dataset") -> Any:
        if data is None:
            return None
        if isinstance(data, dict):
            return {key: self._prepare_eval(part, tokenizer, f"eval_dataset[{key!r}]") for key, part in data.items()}
        if not isinstance(data, Dataset):
            raise ValueError(f"`{name}` is a {type(data).__name__}; give a `datasets.Dataset`, or a dict of them.")
        if not len(data):
            raise ValueError(f"`{name}` has no rows; give it some, or leave it out.")
        return prepare_queries(data, tokenizer, name=name, **self._query_options)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)  # the order in which the reference's scores are kept

    def _evaluation_generator(self, stream: int) -> torch.Generator:
        seed = self.args.seed + RANK_SEED_OFFSET * (self.args.process_index + stream * self.args.world_size)
        return torch.Generator(self.args.device).manual_seed(seed)

    @torch.no_grad()
    def generate_completions(self, sampling: bool = False) -> pd.DataFrame | None:
        """Sample a response to each held-out prompt, print the first few, and return them all.

        Args:
            sampling: Stop after the first batch, as `num_sample_generations` does during training.

        Returns:
            Columns `query`, `model response` (cut), `score`; `None` without an evaluation set.
        """
        if self.eval_dataset is None:
            return None
        generator, rows = self._evaluation_generator(POLICY_STREAM), []
        for batch in self._evaluation_batches():
            part = self._table_rows(batch, generator)
            rows += self.accelerator.gather_for_metrics(
                part, use_gather_object=True
            )  # without what fills the last batch
            if sampling:
                break
        table = pd.DataFrame(rows)
        self.accelerator.print(table.head(TABLE_ROWS).to_string(index=False, max_colwidth=80))
        return table

    def _evaluation_batches(self) -> Iterator[dict[str, Any]]:
        names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
        for name in names:
            yield from self.get_eval_dataloader(name)

    def _table_rows(self, batch: dict[str, Any], generator: torch.Generator) -> list[dict[str, Any]]:
        samples, _, scored, _ = self._respond(batch, generator)
        cut = [row[:n] for row, n in zip(samples.responses.tolist(), scored.lengths.tolist(), strict=True)]
        queries = self.processing_class.batch_decode(raw_queries(self.task, batch), skip_special_tokens=True)
        texts = self.processing_class.batch_decode(cut, skip_special_tokens=True)
        columns = zip(queries, texts, scored.scores.tolist(), strict=True)
        return [{"query": query, "model response": text, "score": score} for query, text, score in columns]
