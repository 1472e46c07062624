"""The paper's scripted sentiment score: a classifier's log-odds of "positive" (Ziegler et al. 2019, section 3.1.1)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .._files import found_model
from .protocol import Text, plain_text

POSITIVE_NAMES = ("positive", "pos", "label_1")


class SentimentScorer:
    """r_s, the log-odds (nats) of the positive class: z_pos − logsumexp(z_others), or the logit of a one-label head.

    With two labels this is z_pos − z_neg. A score depends on its own text only: padding is masked, and a classifier
    that pools at `config.pad_token_id` but declares none is lent a filler its texts do not contain. A text without any
    token is scored on the tokenizer's BOS (else EOS) token alone.

    Args:
        model (`PreTrainedModel` or `str`): a sequence classifier, or the folder or hub id of one. It is put in
            evaluation mode, and moved to the GPU on the first call when there is one.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): loaded from `model` when that is a path.
        positive_label (`str` or `int`, *optional*): name or index of the positive class; by default the label called
            "positive" or "pos" (any case), or "LABEL_1" of two.
        batch_size (`int`, *optional*, defaults to `64`): texts per forward pass.
        max_length (`int`, *optional*): tokens per text; longer texts are cut on the tokenizer's `truncation_side`.
            By default nothing is cut and a text beyond the model's context is refused.
        text (`str`, *optional*, defaults to `"completion"`): what is scored, `"completion"` or `"prompt+completion"`.
        progress (`bool`, *optional*, defaults to `False`): show a progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        positive_label: str | int | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        text: str = "completion",
        progress: bool = False,
    ):
        if text not in ("completion", "prompt+completion"):
            raise ValueError(f"text={text!r} is unknown; use 'completion' or 'prompt+completion'.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if isinstance(model, str | os.PathLike):
            with found_model(model, "model") as path:
                tokenizer = tokenizer or AutoTokenizer.from_pretrained(path)
                model = AutoModelForSequenceClassification.from_pretrained(path)
        if tokenizer is None:
            raise ValueError("tokenizer=None needs a model given by path; pass the classifier's tokenizer.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.positive_index = find_positive_label(model.config, positive_label)
        self.batch_size = batch_size
        self.max_length = max_length
        self.text = text
        self.progress = progress
        self.__name__ = "sentiment"  # TRL's trainers log a reward function under its name

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Return the log-odds of each completion, in order.

        Raises:
            ValueError: if the lists differ in length or a text does not fit the model's context.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts do not match {len(completions)} completions; give one of each.")
        texts = [plain_text(completion) for completion in completions]
        if self.text == "prompt+completion":
            texts = [plain_text(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]
        return self.score_texts(texts)

    @torch.no_grad()
    def score_texts(self, texts: list[str]) -> list[float]:
        """Return the log-odds of each text, in order; texts of similar length share a forward pass."""
        ids = self._encode(texts) if texts else []
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        scores = [0.0] * len(texts)
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc="sentiment", disable=not self.progress):
            rows = order[start : start + self.batch_size]
            for i, score in zip(rows, self._score_batch([ids[i] for i in rows]).tolist(), strict=True):
                scores[i] = score
        return scores

    def _encode(self, texts: list[str]) -> list[list[int]]:
        cut = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        ids = self.tokenizer(texts, **cut)["input_ids"]
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        for text, row in zip(texts, ids, strict=True):
            if len(row) > limit:
                raise ValueError(
                    f"A text of {len(row)} tokens exceeds the classifier's {limit}: {text[:60]!r}...; "
                    f"pass max_length={limit} to cut longer texts."
                )
        return [row or [self._stand_in()] for row in ids]

    def _stand_in(self) -> int:
        for token_id in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        raise ValueError("An empty text cannot be scored by a tokenizer without BOS and EOS; drop empty completions.")

    def _score_batch(self, ids: list[list[int]]) -> torch.Tensor:
        """Log-odds, float32 of shape (B,), of B token lists; padded on the right, so positions need no correction."""
        width = max(len(row) for row in ids)
        with pad_token_for(self.model.config, ids) as filler:
            input_ids = torch.tensor([row + [filler] * (width - len(row)) for row in ids], device=self._device())
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=input_ids.device)
            logits = self.model(input_ids=input_ids, attention_mask=mask).logits.float()  # (B, labels)
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = [i for i in range(logits.shape[1]) if i != self.positive_index]
        return logits[:, self.positive_index] - logits[:, others].logsumexp(dim=1)

    def _device(self) -> torch.device:
        if self.model.device.type == "cpu" and torch.cuda.is_available():
            self.model.to("cuda")
        return self.model.device


def find_positive_label(config: PretrainedConfig, positive_label: str | int | None = None) -> int:
    """Return the index of the positive class, in 0..num_labels-1.

    Raises:
        ValueError: naming the classifier's labels, if none, or none other than a generic one, fits.
    """
    labels = {index: str(name) for index, name in config.id2label.items()}
    if len(labels) == 1:
        return 0
    if isinstance(positive_label, int):
        wanted = [positive_label] if positive_label in labels else []
    else:
        names = [positive_label.lower()] if positive_label else POSITIVE_NAMES[: 3 if len(labels) == 2 else 2]
        wanted = [index for index, name in labels.items() if name.lower() in names]
    if len(wanted) != 1:
        raise ValueError(
            f"positive_label={positive_label!r} does not single out one of the classifier's labels {labels}; "
            "pass the name or index of the positive one."
        )
    return wanted[0]


@contextmanager
def pad_token_for(config: PretrainedConfig, ids: list[list[int]]) -> Iterator[int]:
    """Yield the id to pad `ids` with; a config without one is lent an id that occurs in none of the rows.

    Decoder classifiers read their logits at the last token that is not `config.pad_token_id` and refuse batches
    without it, so an id that is also a text's last token (an EOS, say) would move the reading point.
    """
    if config.pad_token_id is not None:
        yield config.pad_token_id
        return
    used = {token_id for row in ids for token_id in row}
    config.pad_token_id = next(token_id for token_id in range(config.vocab_size) if token_id not in used)
    try:
        yield config.pad_token_id
    finally:
        config.pad_token_id = None
