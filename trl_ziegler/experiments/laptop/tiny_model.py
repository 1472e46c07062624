"""A tokenizer and model sizes small enough to train on a laptop's CPU in under a minute."""

import math
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def build_tokenizer(texts: Iterable[str], vocab_size: int = 900) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which the most frequent words of `texts` are one token each.

    As GPT-2's: any text is encoded and decoded exactly, a word carries its leading space, "." is one token,
    "<|endoftext|>" is BOS and EOS, and there is no PAD. Unlike GPT-2's it has no merges between bytes and words: those
    would take up more than half of so small a vocabulary, so a word outside it falls back to its bytes.

    Args:
        texts (`Iterable[str]`): the corpus whose words are counted; ties go to the word seen first.
        vocab_size (`int`, *optional*, defaults to `900`): at most this many tokens: 256 bytes, EOS, and the words.

    Raises:
        ValueError: if `vocab_size` leaves no room beside the bytes and EOS.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(alphabet) - 1
    if room < 1:
        raise ValueError(f"vocab_size={vocab_size} leaves no room for words; give at least {len(alphabet) + 2}.")
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts = Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text))
    words = [piece for piece, _ in counts.most_common() if len(piece) > 1][:room]
    vocab = {piece: i for i, piece in enumerate(alphabet + words)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def lm_config(
    tokenizer: PreTrainedTokenizerFast, *, n_embd: int = 96, n_layer: int = 2, n_head: int = 4, n_positions: int = 128
) -> GPT2Config:
    """Return the language model's size: GPT-2's architecture, no dropout.

    The initial weights keep GPT-2's relation to the width, std 0.02 at 768; narrow models learn slower from 0.02.
    """
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=n_positions,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The same function as GPT-2's "gelu_new" in one kernel; that one, in Python, is a third of a step on a CPU.
        activation_function="gelu_pytorch_tanh",
        initializer_range=0.02 * math.sqrt(768 / n_embd),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def classifier_config(
    tokenizer: PreTrainedTokenizerFast, *, n_embd: int = 64, n_layer: int = 2, n_head: int = 4
) -> GPT2Config:
    """Return the sentiment classifier's size: as `lm_config`, with a two-label head, NEGATIVE and POSITIVE.

    Texts hold no EOS, so EOS may serve as the id that the classifier's pooling skips.
    """
    config = lm_config(tokenizer, n_embd=n_embd, n_layer=n_layer, n_head=n_head)
    config.pad_token_id = tokenizer.eos_token_id
    config.num_labels = 2
    config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    config.label2id = {"NEGATIVE": 0, "POSITIVE": 1}
    return config
