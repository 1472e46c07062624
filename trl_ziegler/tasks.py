"""What a task fixes: how a query is cut and formatted, a response's length, where it ends, what a missing end costs.

Numbers of the released code: `openai/lm-human-preferences` (cbfd210), `launch.py`; rules: `language/datasets.py`,
`lm_tasks.py`. Lengths are in tokens, temperatures divide logits.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from .functional import apply_penalty, truncate_after


@dataclass(frozen=True)
class Task:
    """A task as text and numbers; `bind` turns its tokens into the ids of one tokenizer.

    Args:
        name: Name used in logs and reports.
        response_length: T, tokens sampled per response (at most, in the `eos` regime).
        regime: `"fixed"` (Ziegler): always T tokens, all of them trained on, the score at T-1.
            `"eos"` (Stiennon, InstructGPT): the response ends at its first stop token, what follows is masked.
        temperature: Divides the logits in sampling and in every log-probability, for policy and reference alike.
        truncate_token: The token that ends a response: its text (`"."`), its id, `"eos"` for the tokenizer's EOS, or
            `None` for responses that never end.
        truncate_after: First index (0-based) at which `truncate_token` counts.
        penalty: Score of a response without `truncate_token` at or after `truncate_after`; `None` for no rule.
        penalty_rule: `"replace"`: the score becomes `penalty`, whatever it was (the reference);
            `"add"`: `penalty` is added to the score (TRL's `missing_eos_penalty`, with its sign turned).
        query_length: L, the longest query; `None` for no limit but the context.
        min_query_length: Shorter queries are left out when queries are cut from documents (paper: 32 for style; the
            released sampler has no lower bound).
        query_start: Queries start after the first occurrence of this token in the document; `None` at its beginning.
        query_end: Queries end after the last occurrence of this token among their first L; `None` for a hard cut.
        prefix: Text put before the query for policy and reference; never seen by the reward model.
        suffix: Text put after the query likewise.
    """

    name: str
    response_length: int
    regime: Literal["fixed", "eos"] = "fixed"
    temperature: float = 1.0
    truncate_token: str | int | None = None
    truncate_after: int = 0
    penalty: float | None = None
    penalty_rule: Literal["replace", "add"] = "replace"
    query_length: int | None = None
    min_query_length: int = 1
    query_start: str | None = None
    query_end: str | None = None
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        if self.response_length < 1:
            raise ValueError(f"`response_length` is {self.response_length}; give at least 1 token.")
        if not self.temperature > 0:
            raise ValueError(
                f"`temperature` is {self.temperature}; give a value above 0 (1.0 samples the model itself)."
            )
        if not 0 <= self.truncate_after < self.response_length:
            raise ValueError(
                f"`truncate_after` is {self.truncate_after}, outside the response's indices 0 to "
                f"{self.response_length - 1}; no response could ever be valid."
            )
        for name, known in (("regime", ("fixed", "eos")), ("penalty_rule", ("replace", "add"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it can be {' or '.join(map(repr, known))}.")
        if self.penalty is not None and self.penalty > 0:
            raise ValueError(
                f"`penalty` is {self.penalty}, the score of a response that misses its end; give 0 or less."
            )
        if self.penalty is not None and self.truncate_token is None:
            raise ValueError(
                f"`penalty` is {self.penalty} but there is no `truncate_token` whose absence it could punish; "
                "give the token or leave the penalty out."
            )

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> "BoundTask":
        """The task in `tokenizer`'s ids. Raises `ValueError` where a token is not exactly one id."""
        stop = self.truncate_token
        if stop == "eos":
            if tokenizer.eos_token_id is None:
                raise ValueError("`truncate_token` is 'eos' but the tokenizer has no EOS; set `tokenizer.eos_token`.")
            stop = tokenizer.eos_token_id
        elif isinstance(stop, str):
            stop = single_token_id(tokenizer, stop)
        if stop is not None and not 0 <= stop < len(tokenizer):
            raise ValueError(f"The stop token id {stop} is outside the tokenizer's {len(tokenizer)} ids.")
        return BoundTask(
            task=self,
            prefix_ids=tuple(part_ids(tokenizer, self.prefix)),
            suffix_ids=tuple(part_ids(tokenizer, self.suffix)),
            start_id=single_token_id(tokenizer, self.query_start) if self.query_start else None,
            end_id=single_token_id(tokenizer, self.query_end) if self.query_end else None,
            truncate_id=stop,
        )


@dataclass(frozen=True)
class BoundTask:
    """A `Task` in the ids of one tokenizer."""

    task: Task
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    start_id: int | None
    end_id: int | None
    truncate_id: int | None

    def query(self, document_ids: Sequence[int]) -> list[int] | None:
        """The query cut from a document's ids (see `cut_query`), or `None` if it has none or a too short one."""
        query = cut_query(document_ids, self.task.query_length, self.start_id, self.end_id)
        return query if query is not None and len(query) >= self.task.min_query_length else None

    def context(self, query_ids: Sequence[int]) -> list[int]:
        """What policy and reference read: prefix, query and suffix, each encoded on its own."""
        return [*self.prefix_ids, *query_ids, *self.suffix_ids]

    def query_of(self, context_ids: Sequence[int]) -> list[int]:
        """The raw query inside `context(query)`: what the reward model reads."""
        return list(context_ids[len(self.prefix_ids) : len(context_ids) - len(self.suffix_ids)])

    @property
    def sampling(self) -> dict[str, Any]:
        """How `sampling.sample` draws responses for PPO: keyword arguments. Only the `eos` regime may end early."""
        rule = self.task
        return {
            "response_length": rule.response_length,
            "temperature": rule.temperature,
            "stop_token_id": self.truncate_id if rule.regime == "eos" else None,
            "stop_after": rule.truncate_after,
        }

    def cut(self, responses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each response ends, and whether it ended by the rule.

        Args:
            responses: `[B, T]` ids as sampled.

        Returns:
            `(lengths [B] int64 in 1..T, valid [B] bool)`: tokens up to and including the stop token, T where there is
            none. Without a stop token every response is valid.
        """
        length = responses.shape[1]
        if self.truncate_id is None:
            full = torch.full((len(responses),), length, device=responses.device)
            return full, torch.ones_like(full, dtype=torch.bool)
        # -1 cannot be an id, so counting what is not -1 gives lengths that no PAD or EOS in the text can disturb.
        cut, valid = truncate_after(responses, self.truncate_id, self.task.truncate_after, -1)
        return (cut != -1).sum(1), valid

    def mask(self, lengths: torch.Tensor) -> torch.Tensor:
        """`[B, T]` bool: the tokens PPO trains on, given the lengths `[B]` of `cut`."""
        positions = torch.arange(self.task.response_length, device=lengths.device)
        if self.task.regime == "fixed":
            return torch.ones(len(lengths), len(positions), dtype=torch.bool, device=lengths.device)
        return positions < lengths[:, None]

    def penalize(self, scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """`[B]` scores after the rule for responses that did not end."""
        if self.task.penalty is None:
            return scores
        if self.task.penalty_rule == "replace":
            return apply_penalty(scores, valid, self.task.penalty)
        return torch.where(valid, scores, scores + self.task.penalty)


def cut_query(
    document_ids: Sequence[int], length: int | None, start_id: int | None, end_id: int | None
) -> list[int] | None:
    """A document's query: after the first start token, at most `length` tokens, up to the last end token.

    Source: `language/datasets.py:Dataset.tf_dataset`, without its padding. Returns `None` where the reference skips
    the document: a start or end token that does not occur.
    """
    ids = list(document_ids)
    if start_id is not None:
        if start_id not in ids:
            return None
        first = ids.index(start_id)
        ids = ids[first + 1 :] if first + 1 < len(ids) else ids
    ids = ids[:length]
    if end_id is not None:
        if end_id not in ids:
            return None
        ids = ids[: len(ids) - ids[::-1].index(end_id)]
    return ids or None


def part_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of one part of a context, encoded on its own and without special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def single_token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The one id of `text`; `ValueError` where the tokenizer needs several."""
    ids = part_ids(tokenizer, text)
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens {ids} in this tokenizer; a rule needs a single token.")
    return ids[0]


BOOKS = Task(
    name="books",
    response_length=24,
    temperature=0.7,
    truncate_token=".",
    truncate_after=16,
    penalty=-1.0,
    query_length=64,
    min_query_length=32,
    query_start=".",
    query_end=".",
)
TLDR = Task(
    name="tldr",
    response_length=75,
    temperature=0.7,
    truncate_token="\n",
    truncate_after=55,
    penalty=-1.0,
    query_length=500,
    suffix="\n\nTL;DR:",
)
CNNDM = Task(
    name="cnndm",
    response_length=75,
    temperature=0.5,
    truncate_token="\n",
    truncate_after=55,
    penalty=-1.0,
    query_length=500,
    query_end="\n",
    prefix="Article:\n\n",
    suffix="\n\nTL;DR:",
)
STIENNON_TLDR = Task(
    name="stiennon_tldr",
    response_length=48,
    regime="eos",
    truncate_token="eos",
    penalty=-1.0,
    query_length=512,
)
STIENNON_CNNDM = Task(
    name="stiennon_cnndm",
    response_length=128,
    regime="eos",
    truncate_token="eos",
    penalty=-1.0,
    query_length=1919,
)
# Stiennon et al. 2020: `openai/summarize-from-feedback` (7009674), `utils/experiment_helpers.py`, temperature in
# `query_response_model.py:SampleHParams`. Prefix and suffix are empty because the two functions below write them into
# the query, which the reward model reads.


def stiennon_query(
    tokenizer: PreTrainedTokenizerBase, subreddit: str, title: str, post: str, length: int = 512
) -> list[int]:
    """Ids of a post's query for `STIENNON_TLDR`, encoded as one text; an over-long post loses lines from its end.

    The source fills short queries up to `length` with spaces on the left, which its models read. Here batches are
    padded on the left and masked (`QueryCollator`), so a query has its own length, and its log-probabilities are not
    those of the released models' runs.

    Args:
        tokenizer: The model's.
        subreddit: Name without `r/`.
        title: Of the post.
        post: Its text. If its first line alone is too long, characters go from that line's end.
        length: Most tokens.

    Raises:
        ValueError: not even the empty post fits.
    """
    head, tail = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: ", "\n\nTL;DR:"
    return fitted_ids(tokenizer, head, post, tail, length)


def stiennon_article_query(tokenizer: PreTrainedTokenizerBase, article: str, length: int = 1919) -> list[int]:
    """Ids of an article's query for `STIENNON_CNNDM`; arguments, cut and error as in `stiennon_query`."""
    return fitted_ids(tokenizer, "Article:\n", article, "\n\nTL;DR:\n", length)


def fitted_ids(tokenizer: PreTrainedTokenizerBase, head: str, body: str, tail: str, length: int) -> list[int]:
    """At most `length` ids of `head + body + tail`, encoded as one, with as much of `body` as fits.

    Lines are cut from the end of `body`, and of a first line that is too long characters. Source:
    `openai/summarize-from-feedback`, `tasks.py:process_query`, which tries one character after the other; here the
    word to cut is found by bisection. Raises `ValueError` where not even an empty body fits.
    """

    def encode(text: str) -> list[int]:
        return part_ids(tokenizer, head + text + tail)

    ids = encode(body)
    while len(ids) > length and "\n" in body:
        body = body[: body.rindex("\n")]
        ids = encode(body)
    if len(ids) <= length:
        return ids
    if len(encode("")) > length:
        raise ValueError(
            f"{head + tail!r} alone is {len(encode(''))} tokens, more than the query's {length}; shorten the title or "
            "raise `length`."
        )
    # Tokens do not reach across the ends of words, so there their number grows; inside a word it may go down again.
    ends = [0, *(word.end() for word in re.finditer(r"\S+", body)), len(body)]
    too_long = bisect_right(ends, length, key=lambda end: len(encode(body[:end])))
    candidates = (encode(body[:end]) for end in range(ends[too_long] - 1, ends[too_long - 1] - 1, -1))
    return next(ids for ids in candidates if len(ids) <= length)
