"""Compiled steps draw what the others draw, from shapes that are compiled once."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo_parts import prompts
from ppo_runs import assert_same_weights
from torch._dynamo.utils import counters

from trl_ziegler import compiled_sampling
from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.compiled_sampling import MULTIPLE, CompiledSteps, check_compilable
from trl_ziegler.sampling import sample

pytest_plugins = "ppo_fixtures"

# What torch 2.13 says of itself when it loads its own compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Graphs are captured and run as they are, which needs no C++ compiler and finds every break and recompilation."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiled_sampling, "BACKEND", "eager")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def make_actor(make_causal_lm):
    def make(kind="gpt2", attention="sdpa"):
        policy = make_causal_lm(kind)
        policy.set_attn_implementation(attention)
        model = ActorCritic(policy).eval()
        torch.nn.init.normal_(model.value_head.weight)
        return model

    return make


def contexts(width: int, rows: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random contexts; the first fills its row, the others are padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width) >= torch.arange(rows)[:, None] * (width // rows)).long()
    return torch.randint(1, 250, (rows, width), generator=generator) * mask, mask


def draw_from(model, given, compiled=None, seed=5, **options):
    settings = {"response_length": 6, "temperature": 0.7, **options}
    return sample(model, *given, generator=torch.Generator().manual_seed(seed), compiled=compiled, **settings)


def assert_equal_samples(ours, theirs):
    assert torch.equal(ours.responses, theirs.responses)
    for name in ("logprobs", "values"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "attention", "width", "samples"),
    [
        ("gpt2", "sdpa", 7, 1),
        ("gpt2", "eager", 30, 4),
        ("llama", "sdpa", 30, 4),
        ("llama", "eager", 7, 4),
    ],
)
def test_draws_what_the_growing_cache_draws(make_actor, kind, attention, width, samples):
    """Four responses to a context of 7 tokens lie in rows of their own, those behind 30 tokens in one row."""
    model = make_actor(kind, attention)
    given = contexts(width)
    compiled = CompiledSteps(model)
    for seed in (5, 6):  # the second rollout finds what the first has left in the room
        ours = draw_from(model, given, compiled, seed, samples_per_query=samples)
        assert_equal_samples(ours, draw_from(model, given, seed=seed, samples_per_query=samples))
        assert len({tuple(row) for row in ours.responses.tolist()}) == 3 * samples
    assert graphs() == 1 and not counters["graph_break"]


def test_a_room_serves_shorter_contexts_and_grows_for_longer_ones(make_actor):
    """Up to 64 slots share a graph, 6 of them of the response; what a longer context has left is not read."""
    model = make_actor()
    compiled = CompiledSteps(model)
    most = MULTIPLE - 6
    for width, expected in ((most - 3, 1), (5, 1), (most, 1), (most + 1, 2), (9, 2)):
        given = contexts(width, seed=width)
        assert_equal_samples(draw_from(model, given, compiled), draw_from(model, given))
        assert graphs() == expected, width
    assert len(compiled._rooms) == 1


def test_a_room_has_space_for_the_longest_context_from_the_start(make_actor):
    model = make_actor()
    compiled = CompiledSteps(model, longest=2 * MULTIPLE)
    for width in (9, 2 * MULTIPLE):
        given = contexts(width)
        assert_equal_samples(draw_from(model, given, compiled), draw_from(model, given))
    assert graphs() == 1


def test_the_second_of_two_rollouts_of_changing_weights_compiles_nothing(make_actor):
    model = make_actor()
    compiled = CompiledSteps(model)
    parts = [contexts(20, rows=3), contexts(20, rows=2)]  # the last part of a rollout is smaller
    for _ in range(2):
        for part in parts:
            assert_equal_samples(draw_from(model, part, compiled), draw_from(model, part))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        model.train()
        model(*[torch.cat([x, x], 1) for x in parts[0]], 20).logits.sum().backward()
        model.zero_grad()
        model.eval()
    assert graphs() == len(parts)


@torch._dynamo.config.patch(recompile_limit=1)
def test_more_shapes_than_torch_allows_are_compiled(make_actor):
    model = make_actor()
    compiled = CompiledSteps(model)
    for rows in (1, 2):
        given = contexts(12, rows)
        assert_equal_samples(draw_from(model, given, compiled), draw_from(model, given))
    assert graphs() == 2


def test_early_end_is_the_same(make_actor):
    model = make_actor()
    given = contexts(7)
    full = draw_from(model, given, response_length=12)
    stop = {"stop_token_id": int(full.responses[0, 3]), "stop_after": 2, "response_length": 12}
    ours = draw_from(model, given, CompiledSteps(model), **stop)
    assert_equal_samples(ours, draw_from(model, given, **stop))
    assert not torch.equal(ours.responses, full.responses)


def test_a_separate_value_network_is_left_to_the_finished_responses(make_causal_lm, make_classifier):
    model = ActorCritic(make_causal_lm(), make_classifier(seed=2)).eval()
    given = contexts(7)
    assert_equal_samples(draw_from(model, given, CompiledSteps(model)), draw_from(model, given))


def test_bfloat16_keeps_its_type(make_actor):
    model = make_actor()
    compiled = CompiledSteps(model)
    given = contexts(7)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = draw_from(model, given, compiled), draw_from(model, given)
    assert torch.equal(ours.responses, theirs.responses)
    (room,) = compiled._rooms.values()
    assert room._cache.layers[0].keys.dtype == torch.bfloat16


def test_a_run_is_the_same_with_and_without(train):
    options = {"num_samples_per_query": 2, "kl_target": 3.0, "learning_rate": 1e-3, "max_steps": 2}
    assert_same_weights(
        train(**options, cache_implementation="static"), train(**options), atol=1e-5, rtol=0
    )  # fmt: skip
    assert graphs() == 1


def test_a_resumed_run_is_the_same(train, tmp_path, monkeypatch):
    """To the last bit, though the one long prompt is in at most one of the two updates."""
    monkeypatch.setattr(compiled_sampling, "MULTIPLE", 1)
    sizes = []
    make = compiled_sampling.Room
    monkeypatch.setattr(compiled_sampling, "Room", lambda *args: sizes.append(args[2]) or make(*args))
    texts = prompts()["prompt"]
    data = Dataset.from_dict({"prompt": [8 * texts[0], *texts[1:]]})
    options = {
        "cache_implementation": "static", "train_dataset": data, "save_strategy": "steps", "save_steps": 1,
        "max_steps": 2,
    }  # fmt: skip
    whole = train(**options, output_dir=str(tmp_path / "whole"))
    checkpoint = min((tmp_path / "whole").glob("checkpoint-*"))
    resumed = train(**options, output_dir=str(tmp_path / "again"), resume=str(checkpoint))
    assert_same_weights(resumed, whole)
    longest = max(len(whole.task.context(ids)) for ids in whole.train_dataset["input_ids"])
    assert sizes == [longest, longest]


class TestRefusals:
    def refusal(self, policy, **options) -> str:
        with pytest.raises(
            ValueError, match="`cache_implementation` is 'static', which this policy does not"
        ) as error:
            check_compilable(policy, **options)
        return str(error.value)

    def test_shards(self, make_causal_lm):
        assert "its weights are in shards (FSDP)" in self.refusal(make_causal_lm(), sharded=True)

    def test_an_adapter(self, make_causal_lm, make_ppo):
        assert "it has an adapter" in self.refusal(
            get_peft_model(make_causal_lm("llama"), LoraConfig(task_type="CAUSAL_LM"))
        )
        with pytest.raises(ValueError, match="it has an adapter, which the reference switches off and on; leave the"):
            make_ppo(
                model=make_causal_lm("llama"),
                peft_config=LoraConfig(task_type="CAUSAL_LM"),
                cache_implementation="static",
            )

    def test_a_model_that_is_not_compiled_as_a_whole(self, make_causal_lm, monkeypatch):
        policy = make_causal_lm()
        monkeypatch.setattr(type(policy), "_can_compile_fullgraph", False)
        assert "transformers does not compile GPT2LMHeadModel as a whole" in self.refusal(policy)

    def test_a_sliding_window(self, make_causal_lm):
        policy = make_causal_lm("llama")
        policy.config.sliding_window = 8
        assert "`config.sliding_window` is 8, which a 4-D mask would overrule" in self.refusal(policy)

    def test_an_attention_without_4_d_masks(self, make_causal_lm):
        policy = make_causal_lm()
        policy.config._attn_implementation = "flash_attention_2"
        assert "its attention is 'flash_attention_2'" in self.refusal(policy)
