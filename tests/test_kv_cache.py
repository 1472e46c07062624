"""The cache with room to grow holds what the library's holds."""

import torch
from transformers.cache_utils import DynamicCache

from trl_ziegler.kv_cache import GROWTH, growing_cache


def states(tokens: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (rows, 3, tokens, 4)
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_holds_what_the_library_s_cache_holds():
    ours, theirs = growing_cache(), DynamicCache()
    for new in (5, 1, 1, GROWTH + 3, 1):
        for layer in range(2):
            ours_now, theirs_now = ours.update(*states(new), layer), theirs.update(*states(new), layer)
            for mine, other in zip(ours_now, theirs_now, strict=True):
                assert torch.equal(mine, other)
    assert ours.get_seq_length() == theirs.get_seq_length() == 5 + 1 + 1 + GROWTH + 3 + 1


def test_a_token_is_written_into_the_room_of_the_last():
    cache = growing_cache()
    pointers = [cache.update(*states(new), 0)[0].data_ptr() for new in (5, *[1] * GROWTH, 1)]
    assert len(set(pointers[:-1])) == 1  # the context and GROWTH tokens fit
    assert pointers[-1] != pointers[0]


def test_rows_repeated_by_the_library_grow_apart():
    cache = growing_cache()
    cache.update(*states(5), 0)
    cache.batch_repeat_interleave(2)
    keys, _ = cache.update(*states(1, rows=4), 0)
    assert torch.equal(keys[:, :, :5], states(5)[0].repeat_interleave(2, 0))
    assert torch.equal(keys[:, :, 5:], states(1, rows=4)[0])
