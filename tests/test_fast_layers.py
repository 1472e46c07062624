"""The faster layers compute what the ones they replace compute."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.activations import NewGELUActivation

from trl_ziegler import fast_layers
from trl_ziegler.fast_layers import LogitsLinear, use_fast_layers


def test_outputs_and_gradients_of_a_model_stay_within_rounding(make_causal_lm, monkeypatch):
    monkeypatch.setattr(fast_layers, "WIDE", 100)
    plain = make_causal_lm().eval()
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert not any(isinstance(module, NewGELUActivation) for module in fast.modules())
    assert isinstance(fast.lm_head, LogitsLinear) and fast.lm_head.weight is fast.transformer.wte.weight
    ids = torch.arange(12).view(2, 6)
    for model in (plain, fast):
        model(input_ids=ids).logits.square().mean().backward()
    assert_close(fast(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-6)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_what_is_saved_stays_as_it_is(make_causal_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_layers, "WIDE", 100)
    model = make_causal_lm()
    keys, activation = set(model.state_dict()), model.config.activation_function
    use_fast_layers(model)
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.activation_function == activation == "gelu_new"
    assert type(loaded.lm_head) is nn.Linear


def test_other_layers_are_left_alone(make_causal_lm):
    layer = nn.Sequential(nn.ReLU(), nn.Sequential(NewGELUActivation(), nn.Tanh()))
    use_fast_layers(layer)
    assert [type(module).__name__ for module in layer.modules()][1:] == ["ReLU", "Sequential", "GELU", "Tanh"]


@pytest.mark.parametrize("rows", [1, 5, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_is_a_linear_layer(monkeypatch, rows, bias):
    """Few rows and many, a width that the parts do not divide."""
    monkeypatch.setattr(fast_layers, "FEW", 5)
    monkeypatch.setattr(fast_layers, "WIDE", 4)
    torch.manual_seed(0)
    plain, x = nn.Linear(3, 10, bias=bias), torch.randn(2, rows, 3)
    wide = copy.deepcopy(plain)
    wide.__class__ = LogitsLinear
    results = []
    for layer in (plain, wide):
        given = x.clone().requires_grad_()
        out = layer(given)
        (out * torch.arange(10)).square().sum().backward()
        results.append((out, given.grad, [p.grad for p in layer.parameters()]))
    assert results[1][0].is_contiguous()
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient():
    wide = nn.Linear(3, 10, bias=False).requires_grad_(False)
    wide.__class__ = LogitsLinear
    given = torch.ones(2, 3, requires_grad=True)
    wide(given).sum().backward()
    assert wide.weight.grad is None and given.grad is not None


@pytest.mark.parametrize("wide", [4, 100])
def test_logits_are_float32_under_autocast(monkeypatch, wide):
    monkeypatch.setattr(fast_layers, "WIDE", wide)
    torch.manual_seed(0)
    head, x = nn.Linear(3, 10), torch.randn(2, 5, 3)
    exact = head(x.bfloat16().float())
    head.__class__ = LogitsLinear
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x.bfloat16())
    assert_close(logits, exact, rtol=1e-5, atol=1e-6)  # bfloat16 would be off by 4e-3 of each
    logits.sum().backward()
    assert head.weight.grad.dtype == torch.float32


def test_other_types_are_left_to_torch():
    head = nn.Linear(3, 10)
    head.__class__ = LogitsLinear
    assert head.double()(torch.ones(2, 3).double()).dtype == torch.float64
    head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.ones(2, 3).bfloat16()).dtype == torch.bfloat16
