"""How much of a summary is copied from its source, and how much of what it says is not in there.

Ziegler et al. 2019, section 3.2.1, found that summarizers fine-tuned on preferences copy whole sentences, mostly from
the beginning of the text, and for that reason rarely say what is not true; these are the figures behind that finding.

Text rules, for languages that put spaces between words:

- Before texts are compared they are lower-cased, and every stretch of white space becomes one space.
- A sentence ends after `.`, `?` or `!` (one or more, closing quotes or brackets included) before white space or the
  end of the text, and at every line break. Abbreviations end one too. Pieces without a letter or digit are dropped.
- A word is a run of letters and digits, apostrophes inside it included; punctuation is none.
- A sentence is copied if it occurs in the source between word boundaries, punctuation included, but for the marks,
  quotes and brackets at its end: a summary that leaves out the full stop or is cut off still copies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np

NGRAMS = (1, 2, 3, 4, 5)

COPIED_SHARE_ALARM = 0.5
"""A policy that copies more than this share of its sentences mostly copies."""

Facts = Callable[[str], Iterable[Hashable]] | Sequence[Collection[Hashable]]
"""A function from a text to its facts, or one collection of facts per example."""

_SENTENCE_END = re.compile(r"(?<![.?!])[.?!]++[\"'”’)\]]*+(?=\s|$)")  # possessive: linear in a row of dots
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BEFORE, _AFTER = r"(?<!\w)(?<!\w['’])", r"(?!\w)(?!['’]\w)"
_END_MARKS = ".?!\"'”’)] "


@dataclass(frozen=True)
class _Pair:
    """What was counted in one summary: n-grams as `(new, all)` for each of `NGRAMS`, positions in [0, 1)."""

    words: int
    sentences: int
    positions: list[float]
    longest_run: int
    ngrams: list[tuple[int, int]]
    starts_with_first: bool


class Copying(evaluate.Metric):
    """What summaries copy from their sources, by the text rules at the top of the module.

    Constructed directly, `Copying()`, so that no hub is asked. `compute(predictions=, sources=)` takes

    - `predictions`: the summaries, strings; an empty one counts with 0 words and no sentence;
    - `sources`: the text that each summarizes, strings;
    - `stated_facts`, `true_facts` (*optional*, both or neither): the facts that each summary states and that each
      source holds, either a function from a text to its facts or one collection per example; a fact is any hashable,

    and returns

    - `copied_share`: share of all summary sentences that occur in their source, None without a sentence;
    - `longest_run`: longest run of words that a summary has in common with its source, in words, mean over summaries;
    - `novel_ngrams`: for n = 1..5 in this order, the share of all n-grams of words in summaries, each occurrence
      counted, that do not occur in their source; None where no summary has n words;
    - `copy_positions`: for each copied sentence the place in its source where it first starts, in characters relative
      to the source's length, in [0, 1);
    - `starts_with_first`: share of summaries that begin with the first sentence of their source;
    - `length`: words per summary, mean; `n`: number of summaries; `sentences`: number of their sentences;
    - with facts, `invented_facts`: share of all stated facts that their source does not hold, None if none was
      stated; and `facts`: number of stated facts.

    Raises `ValueError` for an empty set, a source without a letter or digit, or facts that do not fit the summaries.

    The time grows with the length of the source times that of the summary for `longest_run`, at the speed of a
    substring search, and linearly for the rest: 1,000 pairs of 400 and 60 words take about a second.

    Example:

    >>> Copying().compute(predictions=["I ran. She left."], sources=["Well. I ran. We met."])["copied_share"]
    0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "sources": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="Copied sentences and runs, novel n-grams, and invented facts of summaries.",
            citation="Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593",
            inputs_description="predictions: summaries; sources: the text that each of them summarizes.",
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        sources: Sequence[str],
        stated_facts: Facts | None = None,
        true_facts: Facts | None = None,
    ) -> dict[str, Any]:
        _check_texts(predictions, sources)
        result = _summed_up([_compared(*pair) for pair in zip(predictions, sources, strict=True)])
        if stated_facts is None and true_facts is None:
            return result
        stated = _facts("stated_facts", stated_facts, predictions)
        true = _facts("true_facts", true_facts, sources)
        number = sum(map(len, stated))
        invented = sum(len(said - held) for said, held in zip(stated, true, strict=True))
        return result | {"invented_facts": _share(invented, number), "facts": number}


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, lower-cased, with single spaces and with their end marks; see the rules above."""
    pieces = _SENTENCE_END.sub(r"\g<0>\n", text.lower()).splitlines()
    sentences = (" ".join(piece.split()) for piece in pieces)
    return [sentence for sentence in sentences if _WORD.search(sentence)]


def copied_share(summary: str, source: str) -> float | None:
    """Share of a summary's sentences that occur in its source, as `Copying` counts them; None without a sentence."""
    text, sentences = " ".join(source.lower().split()), split_sentences(summary)
    return _share(sum(_place(sentence, text) is not None for sentence in sentences), len(sentences))


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Number of words in the longest run of words that both lists contain; words hold no space."""
    text, best = f" {' '.join(second)} ", 0
    for start in range(len(first)):
        # Only a longer run than the best matters, so that there are at most 2 len(first) searches.
        while start + best < len(first) and f" {' '.join(first[start : start + best + 1])} " in text:
            best += 1
    return best


def _compared(summary: str, source: str) -> _Pair:
    text, sentences = " ".join(source.lower().split()), split_sentences(summary)
    words, known = _WORD.findall(summary.lower()), _WORD.findall(source.lower())
    places = [place for sentence in sentences if (place := _place(sentence, text)) is not None]
    return _Pair(
        words=len(words),
        sentences=len(sentences),
        positions=[place / len(text) for place in places],
        longest_run=longest_common_run(words, known),
        ngrams=[_new_and_all(words, known, n) for n in NGRAMS],
        starts_with_first=_place(split_sentences(source)[0], " ".join(sentences)) == 0,
    )


def _place(sentence: str, text: str) -> int | None:
    """Index in `text` of the first occurrence of a sentence between word boundaries; None if there is none."""
    wanted = sentence.rstrip(_END_MARKS)
    if wanted not in text:  # many times faster than the pattern, and mostly true
        return None
    match = re.search(_BEFORE + re.escape(wanted) + _AFTER, text)
    return match.start() if match else None


def _new_and_all(words: Sequence[str], known: Sequence[str], n: int) -> tuple[int, int]:
    ngrams, old = _ngrams(words, n), set(_ngrams(known, n))
    return sum(ngram not in old for ngram in ngrams), len(ngrams)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))  # the shortest of the shifted lists ends it


def _summed_up(pairs: Sequence[_Pair]) -> dict[str, Any]:
    positions = [position for pair in pairs for position in pair.positions]
    sentences = sum(pair.sentences for pair in pairs)
    counts = np.sum([pair.ngrams for pair in pairs], axis=0).tolist()  # [5, 2]
    return {
        "copied_share": _share(len(positions), sentences),
        "longest_run": float(np.mean([pair.longest_run for pair in pairs])),
        "novel_ngrams": [_share(new, total) for new, total in counts],
        "copy_positions": positions,
        "starts_with_first": float(np.mean([pair.starts_with_first for pair in pairs])),
        "length": float(np.mean([pair.words for pair in pairs])),
        "n": len(pairs),
        "sentences": sentences,
    }


def _share(part: int, total: int) -> float | None:
    return part / total if total else None


def _facts(name: str, facts: Facts | None, texts: Sequence[str]) -> list[set[Hashable]]:
    if facts is None:
        raise ValueError(f"`{name}` is None: the share of invented facts needs both `stated_facts` and `true_facts`.")
    sets = [set(facts(text)) for text in texts] if callable(facts) else [set(held) for held in facts]
    if len(sets) != len(texts):
        raise ValueError(f"`{name}` has {len(sets)} entries for {len(texts)} summaries: give one collection for each.")
    return sets


def _check_texts(summaries: Sequence[str], sources: Sequence[str]) -> None:
    if not len(summaries):
        raise ValueError("`predictions` is empty: copying needs at least one summary.")
    for i, source in enumerate(sources):
        if not _WORD.search(source):
            raise ValueError(f"sources[{i}] is {source!r}: a source needs a letter or digit; leave the pair out.")


def copier_alarm(
    history: Iterable[Mapping[str, Any]], threshold: float = COPIED_SHARE_ALARM, fall: float = 0.02
) -> str | None:
    """Whether a policy in training has turned into a copier: it copies most sentences, and ROUGE pays for it.

    The history is read in three parts of equal length, one evaluation being noisy. The alarm is raised if in the last
    part the mean copied share is over `threshold`, and since an earlier part it has risen while ROUGE fell by more
    than `fall`.

    Args:
        history: rows in the order of training, of which those with numbers under `copied_share` and `rouge_mean` are
            read, both in [0, 1]; fewer than three give no alarm.
        threshold: copied share over which a policy is a copier, in [0, 1].
        fall: loss of ROUGE, mean of the three, that is more than noise; 0.02 are two points as papers print it.

    Returns:
        One sentence with the numbers and what to try, or None.
    """
    keys = ("copied_share", "rouge_mean")
    rows = [[row[key] for key in keys] for row in history if all(_is_number(row.get(key)) for key in keys)]
    if len(rows) < 3:
        return None
    copied, rouge = np.array([part.mean(axis=0) for part in np.array_split(np.array(rows), 3)]).T  # [3] each
    best = int(rouge.argmax())
    if copied[-1] <= threshold or copied[-1] <= copied[best] or rouge[best] - rouge[-1] <= fall:
        return None
    return (
        f"The copied share of sentences rose from {copied[best]:.2f} to {copied[-1]:.2f} (over {threshold:.2f} is a "
        f"copier) while the mean ROUGE fell from {rouge[best]:.3f} to {rouge[-1]:.3f}: look at samples, lower the KL "
        "target, or collect labels that prefer summaries in the writer's own words."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
