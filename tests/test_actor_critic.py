"""One module for policy and value: what it reads, what it saves, what trains."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_runs import assert_same_weights
from transformers import AutoModelForCausalLM

from trl_ziegler.actor_critic import ActorCritic, model_inputs, response_logits

pytest_plugins = "ppo_fixtures"


@pytest.fixture
def batch():
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 3, 4, 5]])
    return ids, torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def test_positions_count_present_tokens_only():
    inputs = model_inputs(torch.tensor([[7, 99, 99, 8, 9]]), torch.tensor([[1, 0, 0, 1, 1]]))
    assert inputs["position_ids"].tolist() == [[0, 1, 1, 1, 2]]
    assert inputs["input_ids"].tolist() == [[7, 0, 0, 8, 9]]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_padding_anywhere_leaves_the_logits(make_causal_lm, kind):
    model = make_causal_lm(kind).eval()
    plain = response_logits(model, torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4), 2)
    padded_ids, mask = torch.tensor([[99, 5, 99, 6, 7, 8]]), torch.tensor([[0, 1, 0, 1, 1, 1]])
    padded = response_logits(model, padded_ids, mask, 2)
    torch.testing.assert_close(padded, plain, atol=1e-5, rtol=0)


def test_logits_predict_the_response_tokens(make_causal_lm, batch):
    model = make_causal_lm().eval()
    ids, mask = batch
    logits = response_logits(model, ids, mask, 2)
    whole = model(input_ids=ids[:1]).logits  # the unpadded row
    torch.testing.assert_close(logits[:1], whole[:, 2:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(ActorCritic(model).eval()(ids, mask, 2).logits, logits)


def test_value_head_starts_at_zero_and_then_reaches_the_trunk(make_causal_lm, batch):
    model = ActorCritic(make_causal_lm())
    values = model(*batch, 2).values
    assert values.shape == (2, 2)
    assert not values.any()
    torch.nn.init.normal_(model.value_head.weight)
    model(*batch, 2).values.sum().backward()
    assert model.policy.transformer.h[0].attn.c_attn.weight.grad.abs().sum() > 0


def test_value_head_reads_the_final_layer_norm(make_causal_lm, batch):
    model = ActorCritic(make_causal_lm()).eval()
    torch.nn.init.normal_(model.value_head.weight)
    ids = batch[0][:1]
    hidden = model.policy.transformer(input_ids=ids).last_hidden_state[:, 2:4]
    torch.testing.assert_close(
        model(ids, torch.ones_like(ids), 2).values, model.value_head(hidden).squeeze(-1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("separate", [False, True])
def test_saved_folder_loads_as_policy_and_as_actor_critic(make_causal_lm, make_classifier, batch, tmp_path, separate):
    model = ActorCritic(make_causal_lm(), make_classifier(seed=1) if separate else None).eval()
    if not separate:
        torch.nn.init.normal_(model.value_head.weight)
    expected = model(*batch, 2)
    model.save_pretrained(tmp_path)
    loaded = ActorCritic.from_pretrained(tmp_path).eval()(*batch, 2)
    assert torch.equal(loaded.logits, expected.logits)
    assert torch.equal(loaded.values, expected.values)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(response_logits(policy, *batch, 2), expected.logits)
    assert not list(tmp_path.rglob("*.bin"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere; give the one"):
        ActorCritic.from_pretrained(tmp_path / "nowhere")


def test_a_policy_without_its_value_function_is_refused_by_name(make_causal_lm, tmp_path):
    make_causal_lm().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="a policy without its value function"):
        ActorCritic.from_pretrained(tmp_path)


@pytest.mark.parametrize("lora", [False, True])
def test_checkpoint_overwrites_every_weight(make_causal_lm, batch, tmp_path, lora):
    def build(seed):
        policy = make_causal_lm()
        if lora:
            torch.manual_seed(seed)
            policy = get_peft_model(
                policy, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, fan_in_fan_out=True)
            )
        model = ActorCritic(policy).eval()
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.value_head.weight)
        return model

    saved, other = build(1), build(2)
    saved.save_pretrained(tmp_path)
    other.load_checkpoint(tmp_path)
    for name, weight in saved.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_save_over_another_kind_of_model_leaves_nothing_of_it(train, make_classifier, tmp_path):
    """Loading would prefer the former value network to this model's head, and a former adapter to its weights."""
    lora = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    train(value_model=make_classifier(seed=3), peft_config=lora, max_steps=1).save_model(str(folder))
    assert (folder / "value_model").is_dir() and (folder / "adapter_config.json").is_file()
    trainer = train(max_steps=1)
    trainer.save_model(str(folder))
    loaded = ActorCritic.from_pretrained(folder)
    assert loaded.value_model is None
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    train(value_model=make_classifier(seed=3), max_steps=1).save_model(str(folder))
    assert not (folder / "value_head.safetensors").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_adapter_of_another_name_is_resumed(train, make_causal_lm, tmp_path):
    def build(**given):
        lora = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
        policy = get_peft_model(make_causal_lm(), lora, adapter_name="policy")
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        return train(model=policy, model_adapter_name="policy", **settings, **given)

    whole = build()
    assert_same_weights(whole, build(resume=str(tmp_path / "run" / "checkpoint-2")))
