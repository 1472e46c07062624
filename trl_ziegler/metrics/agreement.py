"""How far several labellers agree on the same comparisons, against chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


def fleiss_kappa(counts: np.ndarray) -> float:
    """Fleiss' kappa for a number of raters that may differ between items.

    With n_ij ratings of item i in category j and n_i of it altogether,

        P_i = Σ_j n_ij·(n_ij − 1) / (n_i·(n_i − 1)),   P = mean of P_i over items with n_i >= 2,
        p_j = mean of n_ij / n_i over items with n_i >= 1,   P_e = Σ_j p_j²,   kappa = (P − P_e) / (1 − P_e).

    With one number of raters throughout this is Fleiss 1971, "Measuring nominal scale agreement among many raters";
    for varying numbers it is Gwet's extension (Handbook of Inter-Rater Reliability, 4th ed. 2014; `fleiss.kappa.raw`
    of his R package irrCAC), in which items with one rating inform chance only.

    Args:
        counts: whole numbers of shape (items, categories).

    Returns:
        kappa in [-1, 1]: 1 for full agreement, 0 for that of chance; NaN where chance alone agrees fully (P_e = 1).

    Raises:
        ValueError: no item has two ratings.
    """
    counts = np.asarray(counts, dtype=np.float64)
    raters = counts.sum(axis=1)
    several = raters >= 2
    if not several.any():
        raise ValueError("No item has two ratings: agreement needs items that several people have rated.")
    observed = np.mean([_pair_share(row) for row in counts[several]])
    rated = counts[raters >= 1]
    expected = float(np.square((rated / rated.sum(axis=1, keepdims=True)).mean(axis=0)).sum())
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


class Agreement(evaluate.Metric):
    """How often labellers give the same label to the same item, beside what chance would give.

    Constructed directly, `Agreement()`, so that no hub is asked. `compute(predictions=, references=, num_choices=)`
    takes

    - `predictions`: the labels of each item, indices in 0..K-1, one per labeller; their number may differ;
    - `references`: the names of the labellers who gave them, in the same order; nobody twice on one item;
    - `num_choices`: K, one for all items (`int`) or one for each;

    which `LabelStore.ratings()` returns. The result has, over the items with at least two labels,

    - `agreement`: the probability that two different labellers of a random item agree (the mean over items of the
      share of agreeing pairs: P in `fleiss_kappa`), and `chance`, the mean of 1/K, which blind labellers would reach;
    - `kappa`: Fleiss' kappa, with the indices as categories, so it also discounts a common liking for some index;
    - `per_labeller`: for each name with such an item `agreement`, the mean over their items of the share of the other
      labellers who say the same, `chance`, and `n`, the number of these items;
    - `n`, the number of items, and `pairs`, that of pairs of labels.

    Raises `ValueError` for an empty set, no item with two labels, a label outside 0..K-1, or a labeller twice on an
    item. Ziegler et al. 2019 report raw agreement: 38 % between labellers of sentiment, where chance gives 25 %.

    Example:

    >>> names = [["ann", "bob", "eve"], ["ann", "bob"]]
    >>> Agreement().compute(predictions=[[0, 0, 1], [2, 2]], references=names, num_choices=4)["agreement"]
    0.6666666666666666
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("int64"))}
        features["references"] = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Pairwise agreement of labellers beside chance, Fleiss' kappa, and each one against the rest.",
            citation="Fleiss 1971, Measuring nominal scale agreement among many raters, Psychological Bulletin 76(5)",
            inputs_description="predictions: labels of each item; references: who gave them; num_choices: K.",
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[int]],
        references: Sequence[Sequence[str]],
        num_choices: int | Sequence[int],
    ) -> dict[str, Any]:
        sizes = [num_choices] * len(predictions) if isinstance(num_choices, int) else list(num_choices)
        _check_items(predictions, references, sizes)
        counts = np.array([np.bincount(labels, minlength=max(sizes)) for labels in predictions])
        kappa = fleiss_kappa(counts)
        several = [i for i, labels in enumerate(predictions) if len(labels) >= 2]
        return {
            "agreement": float(np.mean([_pair_share(counts[i]) for i in several])),
            "chance": float(np.mean([1 / sizes[i] for i in several])),
            "kappa": kappa,
            "per_labeller": _per_labeller(
                [predictions[i] for i in several], [references[i] for i in several], [sizes[i] for i in several]
            ),
            "n": len(several),
            "pairs": sum(len(predictions[i]) * (len(predictions[i]) - 1) // 2 for i in several),
        }


def _pair_share(counts: np.ndarray) -> float:
    """Share of the pairs of different raters of one item who agree; `counts` of shape (categories,), two or more."""
    total = counts.sum()
    return float((counts * (counts - 1)).sum() / (total * (total - 1)))


def _per_labeller(
    labels: Sequence[Sequence[int]], names: Sequence[Sequence[str]], sizes: Sequence[int]
) -> dict[str, dict[str, float | int]]:
    shares: dict[str, list[float]] = defaultdict(list)
    chances: dict[str, list[float]] = defaultdict(list)
    for item_labels, item_names, size in zip(labels, names, sizes, strict=True):
        counts = Counter(item_labels)
        for label, name in zip(item_labels, item_names, strict=True):
            shares[name].append((counts[label] - 1) / (len(item_labels) - 1))
            chances[name].append(1 / size)
    return {
        name: {
            "agreement": float(np.mean(shares[name])),
            "chance": float(np.mean(chances[name])),
            "n": len(shares[name]),
        }
        for name in sorted(shares)
    }


def _check_items(labels: Sequence[Sequence[int]], names: Sequence[Sequence[str]], sizes: Sequence[int]) -> None:
    if not len(labels):
        raise ValueError("`predictions` is empty: agreement needs at least one item.")
    if len(sizes) != len(labels):
        raise ValueError(
            f"`num_choices` has {len(sizes)} entries for {len(labels)} items: give one for each, or one K."
        )
    for i, (item_labels, item_names, size) in enumerate(zip(labels, names, sizes, strict=True)):
        if len(item_labels) != len(item_names):
            raise ValueError(
                f"references[{i}] has {len(item_names)} names for {len(item_labels)} labels: give one each."
            )
        if len(set(item_names)) < len(item_names):
            twice = Counter(item_names).most_common(1)[0][0]
            raise ValueError(f"references[{i}] has {twice!r} twice: keep one label of each labeller.")
        for label in item_labels:
            if not 0 <= label < size:
                raise ValueError(f"predictions[{i}] has the label {label}: it must lie in 0..{size - 1}, K - 1.")
