"""Sampling responses to lists of queries, with progress; and the candidates that labellers are shown."""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..actor_critic import ActorCritic, response_logits
from ..fast_layers import use_fast_layers
from ..functional import token_logprobs
from ..online_candidates import different_candidates
from ..queries import QueryCollator, with_responses
from ..sampling import sample
from ..tasks import BoundTask


class Responses(NamedTuple):
    """`responses [N, T]` ids as sampled; `kl [N]`, log(pi/rho) of each in nats (0 without a reference); on the CPU."""

    responses: torch.Tensor
    kl: torch.Tensor


class Generator:
    """Samples from a model as the task asks.

    Args:
        model: The policy.
        task: Lengths and temperature.
        seed: Of this generator's draws.
        batch_size: Rows per forward pass.
        reference: rho, for the log-ratio of each response.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        task: BoundTask,
        *,
        seed: int,
        batch_size: int,
        reference: PreTrainedModel | None = None,
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for network in filter(None, (model, reference)):
            use_fast_layers(network)
        self.model = ActorCritic(model.to(device)).eval()
        self.reference = None if reference is None else reference.to(device).eval()
        self.task = task
        self.batch_size = batch_size
        self._generator = torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def sample(self, queries: list[list[int]], *, count: int = 1, description: str = "Sampling") -> Responses:
        """`count` responses to each query, those of the first query first; the prompt is run once for all of them.

        Queries of similar length share a forward pass.
        """
        order = sorted(range(len(queries)), key=lambda i: len(queries[i]))
        responses = torch.zeros(len(queries), count, self.task.task.response_length, dtype=torch.long)
        kl = torch.zeros(len(queries), count)
        # A batch is some queries with all their responses, or one query with some of them.
        share = min(count, self.batch_size)
        size = self.batch_size // share
        with tqdm(total=len(queries) * count, desc=description, unit=" responses", leave=False) as progress:
            for start, first in product(range(0, len(order), size), range(0, count, share)):
                rows, columns = order[start : start + size], slice(first, min(first + share, count))
                batch = QueryCollator(self.task)([{"input_ids": queries[i]} for i in rows])
                drawn = columns.stop - columns.start
                part = self._sample_batch(batch["input_ids"], batch["attention_mask"], drawn)
                responses[rows, columns] = part.responses.view(len(rows), drawn, -1)
                kl[rows, columns] = part.kl.view(len(rows), drawn)
                progress.update(len(rows) * drawn)
        return Responses(responses.flatten(0, 1), kl.flatten())

    def _sample_batch(self, ids: torch.Tensor, mask: torch.Tensor, count: int) -> Responses:
        ids, mask, rule = ids.to(self.model.device), mask.to(self.model.device), self.task.task
        out = sample(
            self.model,
            ids,
            mask,
            response_length=rule.response_length,
            temperature=rule.temperature,
            generator=self._generator,
            samples_per_query=count,
        )
        kl = torch.zeros(len(out.responses))
        if self.reference is not None:
            ids, mask = ids.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)
            logits = response_logits(self.reference, *with_responses(ids, mask, out.responses), rule.response_length)
            ref_logprobs = token_logprobs(logits, out.responses, temperature=rule.temperature)
            trained = self.task.mask(self.task.cut(out.responses)[0])
            kl = ((out.logprobs - ref_logprobs) * trained).sum(1).cpu()
        return Responses(out.responses.cpu(), kl)


def authors_of(record: int, sources: Sequence[str], count: int) -> list[str]:
    """Who writes the `count` candidates of a record: the sources in turn, another one first for the next record.

    A document has one reference, so what is over is shared by the models among the sources.
    """
    turn = [sources[(record + i) % len(sources)] for i in range(len(sources))]
    models = [name for name in turn if name != "reference"]
    return [*turn[:count], *(models[i % len(models)] for i in range(count - len(turn)))]


def collect_candidates(
    generator: Generator, queries: list[list[int]], count: int
) -> tuple[list[dict[str, Any]], float]:
    """`count` different valid candidates for each query, and the share of samples that were rejected.

    See `different_candidates`; a query without enough of them is left out.
    """

    def draw(asked: list[list[int]], each: int) -> torch.Tensor:
        return generator.sample(asked, count=each, description="Sampling candidates").responses

    found, rejected = different_candidates(draw, generator.task, queries, count)
    complete = [i for i, candidates in enumerate(found) if len(candidates) == count]
    return [{"prompt_ids": queries[i], "completion_ids": found[i]} for i in complete], rejected
