"""Everything the tests share: no network, a tokenizer and random models built in memory."""

import os
import socket

# Before anything imports a Hugging Face library: no hub, no progress bars, no telemetry, no accelerator.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false"
)

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_connect = socket.socket.connect


def _connect_to_loopback_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
        raise OSError(f"Tests may not connect to {address}; only loopback is allowed.")
    return _connect(self, address)


socket.socket.connect = _connect_to_loopback_only


@pytest.fixture(autouse=True)
def one_thread():
    """For models this small a second thread costs more than it brings; recipes, run in this process, ask for more."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


WORDS = [
    "the", "a", "cat", "dog", "house", "garden", "saw", "loved", "hated", "found", "good", "bad", "bright", "dull",
    "warm", "cold", "was", "and", "not", "very", "old", "new", "she", "he", "they", "we", "it", "in", "on", "with",
]  # fmt: skip


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: ids 0..255 are bytes, then one id per word of `WORDS` with its leading space, then EOS.

    Like GPT-2's it has an EOS and no PAD, encodes any text, and decodes to the text exactly. `.` is one id.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        piece = "Ġ"
        for letter in word:
            merged = piece + letter
            if merged not in vocab:
                vocab[merged] = len(vocab)
                merges.append((piece, letter))
            piece = merged
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def model_config(kind: str, vocab_size: int):
    """A two-layer configuration of width 32 with 256 positions, for `kind` in {"gpt2", "llama", "qwen2"}."""
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=256,
            bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1,
        )  # fmt: skip
    config_class = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    return config_class(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1,
    )  # fmt: skip


@pytest.fixture
def make_causal_lm(tokenizer):
    """`make_causal_lm(kind="gpt2", seed=0)`: a random causal model in float32 over the `tokenizer`'s vocabulary."""

    def make(kind: str = "gpt2", seed: int = 0):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config(kind, len(tokenizer)))

    return make


@pytest.fixture
def make_classifier(tokenizer):
    """`make_classifier(kind="gpt2", num_labels=1, seed=0)`: a random sequence classifier in float32."""

    def make(kind: str = "gpt2", num_labels: int = 1, seed: int = 0):
        torch.manual_seed(seed)
        config = model_config(kind, len(tokenizer))
        config.num_labels = num_labels
        return AutoModelForSequenceClassification.from_config(config)

    return make
