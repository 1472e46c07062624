"""The fused activation computes what the written-out one does."""

import copy

import torch
from torch.testing import assert_close
from transformers.activations import NewGELUActivation

from trl_ziegler.fused_gelu import fuse_gelu


def test_outputs_and_gradients_stay_within_rounding(make_causal_lm):
    plain = make_causal_lm().eval()
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    fused = copy.deepcopy(plain)
    fuse_gelu(fused)
    assert not any(isinstance(module, NewGELUActivation) for module in fused.modules())
    ids = torch.arange(12).view(2, 6)
    for model in (plain, fused):
        model(input_ids=ids).logits.square().mean().backward()
    assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-6)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_what_is_saved_stays_as_it_is(make_causal_lm, tmp_path):
    model = make_causal_lm()
    keys, activation = set(model.state_dict()), model.config.activation_function
    fuse_gelu(model)
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.activation_function == activation == "gelu_new"


def test_other_activations_are_left_alone():
    layer = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(NewGELUActivation(), torch.nn.Tanh()))
    fuse_gelu(layer)
    assert [type(module).__name__ for module in layer.modules()][1:] == ["ReLU", "Sequential", "GELU", "Tanh"]
