"""Records and comparisons shared by the tests of the reward model and its trainer."""

import torch
from datasets import Dataset

QUERIES = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]
RESPONSES = [[11, 12], [13, 14, 15, 16, 17], [18], [19, 20, 21]]


def forward(model, ids, mask):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits


def records(n=8, k=4, seed=0, judgement="label"):
    """Random tokenised records."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(0, 300, (length,), generator=generator).tolist()

    rows = {"prompt_ids": [ids(3 + i % 3) for i in range(n)], "completion_ids": []}
    rows["completion_ids"] = [[ids(2 + (i + j) % 4) for j in range(k)] for i in range(n)]
    rows[judgement] = [int(torch.randint(0, k, (1,), generator=generator)) for _ in range(n)]
    return Dataset.from_dict(rows)


def parameters_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_parameters(first, second, **tolerance):
    for name, parameter in first.items():
        torch.testing.assert_close(second[name], parameter, **(tolerance or {"atol": 0, "rtol": 0}), msg=name)
