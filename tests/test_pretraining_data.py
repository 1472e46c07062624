"""Pretraining text beside PPO: packing, order, position, and the loss."""

import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.functional import policy_loss, token_logprobs_and_entropy, value_loss
from trl_ziegler.pretraining_data import PretrainingStream, pretraining_loss

EOS = 342  # of the tokenizer of conftest.py, its last id


def documents(*lengths: int) -> Dataset:
    """Documents of ids: the first is 10, 11, ..., the second 20, 21, ..."""
    return Dataset.from_dict({"input_ids": [[10 * (i + 1) + j for j in range(n)] for i, n in enumerate(lengths)]})


def take(stream, count: int) -> list[list[list[int]]]:
    return [next(stream).tolist() for _ in range(count)]


def tokens(stream, batches: int) -> list[int]:
    return [token for batch in take(stream, batches) for row in batch for token in row]


@pytest.fixture
def make_stream(tokenizer):
    assert tokenizer.eos_token_id == EOS

    def make(dataset, length=4, batch_size=2, seed=0, **processes):
        return PretrainingStream(dataset, tokenizer, length, batch_size, seed, **processes)

    return make


# ---- Packing --------------------------------------------------------------------------------------------------------


def test_documents_are_packed_without_padding_and_end_with_eos(make_stream):
    stream = make_stream(documents(5))
    assert take(stream, 2) == [
        [[10, 11, 12, 13], [14, EOS, 10, 11]],
        [[12, 13, 14, EOS], [10, 11, 12, 13]],
    ]
    batch = next(stream)
    assert (batch.shape, batch.dtype) == ((2, 4), torch.int64)


def test_text_is_encoded_as_everywhere_else(make_stream, tokenizer):
    text = " the cat was warm."
    ids = tokenizer(text)["input_ids"]
    assert tokens(make_stream(Dataset.from_dict({"text": [text]}), 3, 1), 4) == ([*ids, EOS] * 9)[:12]


def test_an_eos_at_the_end_is_not_doubled_and_empty_documents_are_skipped(make_stream, tokenizer):
    assert tokens(make_stream(Dataset.from_dict({"input_ids": [[7, EOS], []]})), 1) == [7, EOS] * 4
    (letter,) = tokenizer("a")["input_ids"]
    assert tokens(make_stream(Dataset.from_dict({"text": ["a", "", None]})), 1) == [letter, EOS] * 4


# ---- Order ----------------------------------------------------------------------------------------------------------


def passes(stream, count: int, length: int) -> list[list[int]]:
    """The documents of each pass by their first id, for documents of one token."""
    seen = [token for token in tokens(stream, count * length // 4) if token != EOS]
    return [seen[i : i + length] for i in range(0, count * length, length)]


def test_every_pass_has_every_document_once_in_its_own_order(make_stream):
    one_token_each = documents(*[1] * 8)
    orders = passes(make_stream(one_token_each), 3, 8)
    assert all(sorted(order) == [10 * (i + 1) for i in range(8)] for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert passes(make_stream(one_token_each), 3, 8) == orders
    assert passes(make_stream(one_token_each, seed=5), 1, 8) != orders[:1]


def test_processes_share_one_order_and_read_disjoint_documents(make_stream):
    one_token_each = documents(*[1] * 8)
    (whole,) = passes(make_stream(one_token_each), 1, 8)
    parts = [passes(make_stream(one_token_each, process_index=i, num_processes=2), 1, 4)[0] for i in range(2)]
    assert [document for pair in zip(*parts, strict=True) for document in pair] == whole


def test_global_random_state_is_left_alone(make_stream):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    take(make_stream(documents(3, 5, 2)), 5)
    assert torch.equal(torch.rand(1), expected)


# ---- Position -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", range(7))
def test_a_saved_position_continues_with_the_very_same_tokens(make_stream, before):
    dataset, split = documents(3, 7, 1, 5), {"process_index": 1, "num_processes": 2}
    stream = make_stream(dataset, **split)
    take(stream, before)
    state = json.loads(json.dumps(stream.state_dict()))
    rest = take(stream, 8)
    resumed = make_stream(dataset, **split)
    resumed.load_state_dict(state)
    assert take(resumed, 8) == rest
    stream.load_state_dict(state)  # back to where it was
    assert take(stream, 8) == rest


def test_a_state_is_a_copy(make_stream):
    stream = make_stream(documents(3), 3, 1)
    next(stream)
    state = stream.state_dict()
    saved = json.dumps(state)
    take(stream, 3)
    assert json.dumps(state) == saved
    stream.load_state_dict(state)
    take(stream, 3)
    assert json.dumps(state) == saved


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "has `seed` 0, this one 1"),
        ({"process_index": 1, "num_processes": 2}, "has `process_index` 0, this one 1"),
        ({"num_processes": 2}, "has `num_processes` 1, this one 2"),
        ({"dataset": documents(3, 3)}, "has `documents` 3, this one 2"),
    ],
)
def test_a_position_of_another_stream_is_refused(make_stream, other, message):
    state = make_stream(documents(3, 3, 3)).state_dict()
    with pytest.raises(ValueError, match=message):
        make_stream(**{"dataset": documents(3, 3, 3), **other}).load_state_dict(state)


@pytest.mark.parametrize(
    ("dataset", "fields", "message"),
    [
        (Dataset.from_dict({"prompt": ["a"]}), {}, r"has the columns \['prompt'\]; give a `text` or `input_ids`"),
        (documents(3), {"num_processes": 2}, "has 1 documents for 2 processes"),
        (documents(3), {"length": 1}, "`length` of the pretraining stream is 1; give at least 2"),
        (documents(3), {"batch_size": 0}, "`batch_size` of the pretraining stream is 0"),
    ],
)
def test_streams_that_cannot_work_are_refused(make_stream, dataset, fields, message):
    with pytest.raises(ValueError, match=message):
        make_stream(dataset, **fields)


def test_text_that_is_nowhere_and_a_missing_eos_are_refused(make_stream, tokenizer):
    with pytest.raises(ValueError, match="no document with text"):
        next(make_stream(Dataset.from_dict({"text": ["", ""]})))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no EOS to separate documents"):
        PretrainingStream(documents(3), tokenizer, 4, 2, 0)


# ---- Loss -----------------------------------------------------------------------------------------------------------

IDS = torch.tensor([[5, 6, 7, 8, 9, 4], [3, 3, 1, 2, 5, 6]])


def gradients(module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_loss_and_gradient_are_those_of_the_plain_language_model(make_causal_lm, kind):
    """Transformers' own loss predicts the same tokens: all but the first."""
    policy = make_causal_lm(kind).eval()
    model = ActorCritic(policy)
    loss = pretraining_loss(model, IDS)
    loss.backward()
    ours = gradients(policy)
    plain = policy(input_ids=IDS, labels=IDS).loss
    plain.backward()
    assert_close(loss, plain)
    for name, gradient in gradients(policy).items():
        assert_close(ours.pop(name), gradient, atol=1e-7, rtol=1e-5)
    assert not ours
    assert model.value_head.weight.grad is None and model.value_head.bias.grad is None


def test_first_token_is_not_predicted(make_causal_lm):
    model = ActorCritic(make_causal_lm().eval())
    head = model.policy.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: torch.zeros_like(logits))
    assert pretraining_loss(model, IDS).item() == pytest.approx(math.log(EOS + 1))
    rows = [pretraining_loss(ActorCritic(make_causal_lm().eval()), row[None]) for row in IDS]
    assert_close(pretraining_loss(ActorCritic(make_causal_lm().eval()), IDS), torch.stack(rows).mean())


def test_value_network_is_not_run(make_causal_lm, make_classifier):
    model = ActorCritic(make_causal_lm().eval(), make_classifier().eval())
    model.value_model.forward = None
    pretraining_loss(model, IDS).backward()
    assert model.value_model.score.weight.grad is None


def test_adapter_alone_is_trained(make_causal_lm):
    model = ActorCritic(get_peft_model(make_causal_lm("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])))
    pretraining_loss(model, IDS).backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None]
    assert names and all("lora" in name for name in names)


def ppo_loss(model, advantages, returns):
    ids, mask = IDS[:, :5], torch.ones(2, 5, dtype=torch.long)
    out = model(ids, mask, 3)
    logprobs, _ = token_logprobs_and_entropy(out.logits, ids[:, 2:], temperature=0.7)
    return policy_loss(logprobs, logprobs.detach(), advantages) + 0.1 * value_loss(
        out.values, torch.zeros(2, 3), returns
    )


def test_without_advantages_the_gradient_is_gamma_ptx_times_the_language_models(make_causal_lm):
    model = ActorCritic(make_causal_lm().eval())
    pretraining_loss(model, IDS).backward()
    language = gradients(model)
    (ppo_loss(model, torch.zeros(2, 3), torch.zeros(2, 3)) + 27.8 * pretraining_loss(model, IDS)).backward()
    both = gradients(model)
    for name, gradient in language.items():
        assert_close(both[name], 27.8 * gradient, atol=1e-5, rtol=1e-4)


def test_gradients_of_both_losses_add_up(make_causal_lm):
    model = ActorCritic(make_causal_lm().eval())
    advantages, returns = torch.tensor([[1.0, -1.0, 0.5], [2.0, 0.3, -1.0]]), torch.ones(2, 3)
    pretraining_loss(model, IDS).backward()
    language = gradients(model)
    ppo_loss(model, advantages, returns).backward()
    alone = gradients(model)
    (ppo_loss(model, advantages, returns) + 2.0 * pretraining_loss(model, IDS)).backward()
    both = gradients(model)
    for name, gradient in both.items():
        assert_close(gradient, alone[name] + 2.0 * language.get(name, 0.0), atol=1e-6, rtol=1e-4)
    assert (both["policy.transformer.wte.weight"] - alone["policy.transformer.wte.weight"]).abs().max() > 1e-3


def test_nothing_of_the_pass_stays_behind(make_causal_lm):
    """What the value head would have read is let go, or its graph would live until the next rollout."""
    model = ActorCritic(make_causal_lm().eval())
    pretraining_loss(model, IDS)
    assert model._trunk._read is None
