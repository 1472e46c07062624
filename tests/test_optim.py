"""TFAdam against hand-worked steps, a plain numpy loop, and inside `transformers.Trainer`."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from trl_ziegler.optim import TFAdam


def first_step(optimizer_class, gradient: float, **options) -> float:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.full_like(parameter, gradient)
    optimizer_class([parameter], lr=1.0, **options).step()
    return -parameter.item()


def numpy_tf_adam(theta, gradients, lr, betas=(0.9, 0.999), eps=1e-5):
    """A literal loop over steps; a gradient of None is a step that does not happen."""
    m, v, k = np.zeros_like(theta), np.zeros_like(theta), 0
    for gradient in gradients:
        if gradient is None:
            continue
        k += 1
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        theta = theta - lr * math.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k) * m / (np.sqrt(v) + eps)
    return theta


def run(optimizer, parameters, steps):
    for gradients in steps:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        optimizer.step()


def test_first_step_has_epsilon_outside_the_bias_correction():
    assert first_step(TFAdam, 1e-5) == pytest.approx(0.03065, abs=5e-6)
    assert first_step(TFAdam, 1e-5) == pytest.approx(1e-5 / (1e-5 + 1e-5 / math.sqrt(0.001)), rel=1e-9)
    assert first_step(TFAdam, -2.0) == pytest.approx(-1.0, abs=2e-4)


def test_first_step_differs_from_torch_adam():
    assert first_step(torch.optim.Adam, 1e-5, eps=1e-5) == pytest.approx(0.5, abs=1e-6)
    assert first_step(torch.optim.Adam, 1e-5, eps=1e-8) == pytest.approx(0.999, abs=1e-4)


def test_with_tiny_epsilon_it_is_torch_adam():
    rng = np.random.default_rng(1)
    start, steps = rng.normal(size=(4,)), [[rng.normal(size=(4,))] for _ in range(6)]
    results = []
    for optimizer_class in (TFAdam, torch.optim.Adam):
        parameter = torch.nn.Parameter(torch.tensor(start))
        run(optimizer_class([parameter], lr=0.1, eps=1e-15), [parameter], steps)
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "eps": 1e-3}])
def test_several_steps_equal_a_numpy_loop(options):
    rng = np.random.default_rng(0)
    shapes = [(3, 2), (5,), ()]
    starts = [rng.normal(size=shape) for shape in shapes]
    steps = [[np.asarray(10.0 ** rng.integers(-6, 2) * rng.normal(size=shape)) for shape in shapes] for _ in range(7)]
    steps[2][1] = steps[0][2] = None  # parameters without a gradient keep weights, moments and step count
    parameters = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    run(TFAdam(parameters, lr=0.01, **options), parameters, steps)
    for i, parameter in enumerate(parameters):
        expected = numpy_tf_adam(starts[i], [gradients[i] for gradients in steps], 0.01, **options)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_parameter_without_gradient_does_not_move_on_its_momentum():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = TFAdam([parameter], lr=0.1)
    run(optimizer, [parameter], [[np.ones(2, np.float32)]])
    before = parameter.detach().clone()
    run(optimizer, [parameter], [[None]])
    assert torch.equal(parameter, before)


def test_groups_keep_their_own_learning_rate():
    slow, fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = TFAdam([{"params": [slow], "lr": 0.001}, {"params": [fast]}], lr=0.1)
    run(optimizer, [slow, fast], [[np.ones(1, np.float32)] * 2])
    assert fast.item() == pytest.approx(100 * slow.item(), rel=1e-6)


def test_step_returns_the_closure_loss():
    parameter = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = TFAdam([parameter], lr=0.1)

    def closure():
        loss = parameter**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() < 3.0


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    rng = np.random.default_rng(2)
    start, steps = rng.normal(size=(4,)), [[rng.normal(size=(4,))] for _ in range(6)]
    whole = torch.nn.Parameter(torch.tensor(start))
    run(TFAdam([whole], lr=0.1), [whole], steps)

    half = torch.nn.Parameter(torch.tensor(start))
    first = TFAdam([half], lr=0.1)
    run(first, [half], steps[:3])
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    resumed = torch.nn.Parameter(half.detach().clone())
    second = TFAdam([resumed], lr=99.0)  # the saved learning rate replaces this one
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(second, [resumed], steps[3:])
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "`lr` must be >= 0, got -1.0"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, r"`betas` must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"lr": 0.1, "eps": 0.0}, "`eps` must be > 0, got 0.0"),
    ],
)
def test_bad_hyperparameter_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TFAdam([torch.nn.Parameter(torch.zeros(1))], **options)


def test_weight_decay_is_refused_in_any_group():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = TFAdam([{"params": [parameter], "weight_decay": 0.0}], lr=0.1)
    with pytest.raises(ValueError, match=r"`weight_decay` must be 0 with TFAdam, got 0\.01"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": 0.01})


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, labels):
        return {"loss": (self.linear(x) - labels).square().mean()}


def make_trainer(model, tmp_path, **options):
    data = [{"x": torch.tensor([float(i), 1.0]), "labels": torch.tensor([2.0 * i])} for i in range(8)]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=8, report_to="none", use_cpu=True, save_strategy="no",
        lr_scheduler_type="constant", disable_tqdm=True, max_grad_norm=0.0, **options,
    )  # fmt: skip
    return Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=(TFAdam, {"lr": 0.5}))


def test_trainer_runs_it_with_the_same_result_as_a_plain_loop(tmp_path):
    model = Regression()
    plain = copy.deepcopy(model)
    trainer = make_trainer(model, tmp_path)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, TFAdam)
    assert len(trainer.optimizer.param_groups) == 2  # with and without weight decay, both 0 here

    x = torch.stack([torch.tensor([float(i), 1.0]) for i in range(8)])
    optimizer = TFAdam(plain.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        plain(x, 2 * x[:, :1])["loss"].backward()
        optimizer.step()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_trainer_asking_for_weight_decay_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`weight_decay` must be 0 with TFAdam, got 0\.1"):
        make_trainer(Regression(), tmp_path, weight_decay=0.1).train()
