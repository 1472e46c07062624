import socket

import pytest


def test_connections_beyond_loopback_are_refused():
    with socket.socket() as connection, pytest.raises(OSError, match="only loopback is allowed"):
        connection.connect(("192.0.2.1", 80))


def test_tokenizer_is_exact_and_the_period_is_one_token(tokenizer):
    text = " the cat was not very good. Ünï\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(".")["input_ids"]) == 1
    assert tokenizer.pad_token is None
