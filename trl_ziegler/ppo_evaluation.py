"""Evaluation by sampling: the rollout statistics of held-out prompts, and a table of what the policy says to them.

Axis letters: B queries, T response tokens.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from .ppo_statistics import rollout_statistics
from .queries import prepare_queries, raw_queries
from .reward_wrapper import KLEntropyReward, Scored, ShapedRewards
from .sampling import Samples
from .tasks import BoundTask

RANK_SEED_OFFSET = 100003  # openai/lm-human-preferences, utils/core.py:set_mpi_seed
TABLE_ROWS = 5


class SampledEvaluation(Trainer):
    """The part of `ZieglerPPOTrainer` that looks at held-out prompts.

    Expects the attributes `task`, `reward`, `_query_options` and the method `_respond`.
    """

    task: BoundTask
    reward: KLEntropyReward
    _query_options: dict[str, Any]

    def _respond(
        self, batch: dict[str, Any], generator: torch.Generator
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

        The generator is seeded anew each time: evaluations are comparable, and they leave training's samples alone.
        """
        generator = self._evaluation_generator()
        columns: dict[str, list[torch.Tensor]] = defaultdict(list)
        for batch in dataloader:
            samples, ref_logprobs, scored, shaped = self._respond(batch, generator)
            episodes = rollout_statistics(samples.logprobs, ref_logprobs, scored, shaped, self.reward.names)
            for name, column in episodes.items():
                columns[name].append(self.accelerator.gather_for_metrics(column.float().to(self.args.device)))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        metrics = {f"{metric_key_prefix}_{name}": float(column.nanmean()) for name, column in joined.items()}
        return EvalLoopOutput(None, None, metrics, num_samples=len(next(iter(joined.values()))))

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

    def _prepare_eval(self, data: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        if data is None:
            return None
        if isinstance(data, dict):
            return {name: self._prepare_eval(part, tokenizer) for name, part in data.items()}
        return prepare_queries(data, tokenizer, name="eval_dataset", **self._query_options)

    def _evaluation_generator(self) -> torch.Generator:
        seed = self.args.seed + RANK_SEED_OFFSET * (self.args.process_index + self.args.world_size)
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
        generator, rows = self._evaluation_generator(), []
        for batch in self._evaluation_batches():
            rows += gather_object(self._table_rows(batch, generator))
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
