"""From responses to rewards: what each kind of reward function reads, and what becomes of its answers."""

import copy
import functools
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from trl_ziegler.kl_control import FixedKLController
from trl_ziegler.reward_model import as_reward_model, score_token_ids
from trl_ziegler.reward_wrapper import KLEntropyReward, Scored, function_name
from trl_ziegler.tasks import Task

TASK = Task("t", 4, truncate_token=".", truncate_after=1, penalty=-1.0, prefix="it ", suffix=" and")


def build(tokenizer, functions, *, weights=None, task=TASK, kl_coef=0.1, **options):
    controller = FixedKLController(kl_coef)
    weights = [1.0] * len(functions) if weights is None else weights
    return KLEntropyReward(functions, weights, task.bind(tokenizer), tokenizer, controller, **options)


@pytest.fixture
def texts(tokenizer):
    """Two queries and responses: one ends at its second token, one never does."""
    queries = [tokenizer(text)["input_ids"] for text in (" the cat", " a dog")]
    responses = torch.tensor([tokenizer(text)["input_ids"] for text in (" was. and it", " was old and new")])
    return queries, responses


def test_callables_read_the_cut_text_and_every_column(tokenizer, texts):
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [2.0, 3.0]

    scored = build(tokenizer, [reward]).score(*texts, {"extra": [7, 8]})
    assert seen == {"prompts": [" the cat", " a dog"], "completions": [" was.", " was old and new"], "extra": [7, 8]}
    assert scored.raw.tolist() == [2.0, 3.0]
    assert scored.scores.tolist() == [2.0, -1.0]
    assert scored.lengths.tolist() == [2, 4]
    assert scored.valid.tolist() == [True, False]


def test_prompt_column_wins_and_chat_prompts_get_messages(tokenizer, texts):
    chat = [[{"role": "user", "content": "hi"}]] * 2
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, completions, columns))
        return [0.0, 0.0]

    given = {"prompt": chat}
    build(tokenizer, [reward]).score(*texts, given)
    assert given == {"prompt": chat}
    prompts, completions, columns = seen[0]
    assert prompts == chat
    assert completions[0] == [{"role": "assistant", "content": " was."}]
    assert columns == {}


def test_callables_read_no_special_tokens(tokenizer, texts):
    queries, responses = texts
    end = tokenizer.eos_token_id
    seen = []
    reward = build(tokenizer, [lambda prompts, completions: seen.append((prompts, completions)) or [0.0, 0.0]])
    reward.score([[end, *query] for query in queries], torch.cat([torch.full((2, 1), end), responses], 1), {})
    assert seen == [([" the cat", " a dog"], [" was.", " was old and new"])]


def test_models_read_the_raw_query_and_the_cut_response_as_ids(tokenizer, texts, make_classifier):
    model = as_reward_model(make_classifier(), fresh_head=True)
    queries, responses = texts
    scored = build(tokenizer, [model]).score(queries, responses, {})
    expected = score_token_ids(model, queries, [responses[0, :2].tolist(), responses[1].tolist()])
    torch.testing.assert_close(scored.raw, expected)
    after_the_cut = responses.clone()
    after_the_cut[0, 2:] = 5
    assert torch.equal(build(tokenizer, [model]).score(queries, after_the_cut, {}).raw, scored.raw)
    at_the_cut = responses.clone()
    at_the_cut[0, 0] = 5
    assert build(tokenizer, [model]).score(queries, at_the_cut, {}).raw[0] != scored.raw[0]


def test_prefix_and_suffix_never_reach_the_reward_model(tokenizer, texts, make_classifier):
    model = as_reward_model(make_classifier(), fresh_head=True)
    bare = Task("t", 4, truncate_token=".", truncate_after=1, penalty=-1.0)
    with_parts = build(tokenizer, [model]).score(*texts, {}).raw
    assert torch.equal(build(tokenizer, [model], task=bare).score(*texts, {}).raw, with_parts)


def test_a_model_with_its_own_tokenizer_reads_text(tokenizer, texts, make_classifier):
    model = as_reward_model(make_classifier(), fresh_head=True)
    own = build(tokenizer, [model], processing_classes=[tokenizer]).score(*texts, {}).raw
    torch.testing.assert_close(own, build(tokenizer, [model]).score(*texts, {}).raw)


def test_text_for_another_tokenizer_gets_that_one_s_special_tokens_as_in_training(tokenizer, texts, make_classifier):
    model = as_reward_model(make_classifier(), fresh_head=True)
    queries, responses = texts
    end, start = tokenizer.eos_token_id, tokenizer("!")["input_ids"][0]
    other = copy.deepcopy(tokenizer)
    ended = torch.cat([responses[:, :2], torch.full((2, 1), end), responses[:, 2:]], 1)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="! $A !", special_tokens=[("!", start)])
    reward = build(tokenizer, [model], processing_classes=[other], task=Task("t", 5))
    ours = reward.score([[end, *query] for query in queries], ended, {}).raw
    expected = score_token_ids(model, [[start, *query] for query in queries], responses.tolist())  # no "!" between
    torch.testing.assert_close(ours, expected)


def test_a_chat_for_another_tokenizer_goes_through_that_one_s_template(tokenizer, texts, make_classifier):
    model = as_reward_model(make_classifier(), fresh_head=True)
    _, responses = texts
    chat = [[{"role": "user", "content": content}] for content in (" the cat", " a dog")]
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}! {{ m['content'] }}{% endfor %}"
    reward = build(tokenizer, [model], processing_classes=[other], task=Task("t", 4))
    ours = reward.score([[1], [2]], responses, {"prompt": chat}).raw  # what the policy's template made of them
    rendered = [
        other.apply_chat_template([*query, {"role": "assistant", "content": text}], return_dict=False)
        for query, text in zip(chat, tokenizer.batch_decode(responses), strict=True)
    ]
    torch.testing.assert_close(ours, score_token_ids(model, [[]] * 2, rendered))


def test_what_is_only_logged_is_no_score(tokenizer, texts):
    functions = [lambda prompts, completions: [1.0, None], lambda prompts, completions: [2.0, 3.0]]
    with pytest.raises(ValueError, match="gave no finite score for the prompt ' a dog'"):
        build(tokenizer, functions, weights=[1.0, 0.0], task=Task("t", 4)).score(*texts, {})
    build(tokenizer, functions, weights=[1.0, 0.5], task=Task("t", 4)).score(*texts, {})


def test_functions_of_one_name_are_numbered(tokenizer):
    def named(name):
        function = lambda prompts, completions: [0.0] * len(prompts)  # noqa: E731
        function.__name__ = name
        return function

    reward = build(tokenizer, [named(name) for name in ("a", "b", "a", "a")])
    assert reward.names == ["a", "b", "a-2", "a-3"]


@pytest.mark.parametrize(("options", "rows"), [({}, [2]), ({"batch_size": 1}, [1, 1])])
def test_batch_size_bounds_the_rows_of_a_forward_pass(tokenizer, texts, make_classifier, options, rows):
    model, seen = as_reward_model(make_classifier(), fresh_head=True), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output.logits)))
    build(tokenizer, [model], **options).score(*texts, {})
    assert seen == rows


def test_functions_are_weighted_and_none_counts_as_nothing(tokenizer, texts):
    functions = [lambda prompts, completions: [1.0, 2.0], lambda prompts, completions: [None, 4.0]]
    task = Task("t", 4)
    scored = build(tokenizer, functions, weights=[2.0, 0.5], task=task).score(*texts, {})
    assert scored.scores.tolist() == [2.0, 6.0]
    assert math.isnan(scored.parts[0, 1])


def test_reward_is_the_score_at_the_end_minus_beta_times_the_log_ratio(tokenizer):
    reward = build(tokenizer, [len], task=Task("t", 3), kl_coef=0.5)
    scored = Scored(  # `raw` differs, as under a penalty
        torch.tensor([2.0]), torch.tensor([7.0]), torch.zeros(1, 1), torch.tensor([1]), torch.tensor([True])
    )
    logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-2.0, -2.0, -1.0]])
    shaped = reward.shape(scored, logprobs, ref_logprobs)
    torch.testing.assert_close(shaped.kl_reward, torch.tensor([[-0.5, 0.0, 1.0]]))
    torch.testing.assert_close(shaped.rewards, torch.tensor([[-0.5, 0.0, 3.0]]))  # at T-1, though the text ended at 0
    torch.testing.assert_close(shaped.entropy_bonus, torch.tensor([[0.5, 1.0, 1.5]]))
    assert shaped.mask.all()


def test_in_the_eos_regime_the_score_lands_on_the_last_token_kept(tokenizer):
    reward = build(tokenizer, [len], task=Task("t", 3, regime="eos", truncate_token="."), kl_coef=0.5)
    scored = Scored(
        torch.tensor([2.0]), torch.tensor([2.0]), torch.zeros(1, 1), torch.tensor([2]), torch.tensor([True])
    )
    shaped = reward.shape(scored, torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-2.0, -2.0, -1.0]]))
    torch.testing.assert_close(shaped.rewards, torch.tensor([[-0.5, 2.0, 0.0]]))
    assert shaped.mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_prompt_and_response(tokenizer, texts, value):
    def broken(prompts, completions):
        return [0.0, value]

    with pytest.raises(ValueError, match="'broken' gave no finite score for the prompt ' a dog' and the response"):
        build(tokenizer, [broken]).score(*texts, {})


def test_the_first_bad_row_and_its_function_are_named(tokenizer, texts, make_classifier):
    def fine(prompts, completions):
        return [None, 1.0]

    def broken(prompts, completions):
        return [1.0, math.nan]

    message = "'broken' gave no finite score for the prompt ' a dog' and the response ' was old and new'"
    with pytest.raises(ValueError, match=message):
        build(tokenizer, [fine, broken]).score(*texts, {})
    with pytest.raises(ValueError, match=r"for the prompt ' the cat' and the response ' was\.'"):
        build(tokenizer, [lambda prompts, completions: [math.inf, math.inf]]).score(*texts, {})
    model = as_reward_model(make_classifier(), fresh_head=True)
    torch.nn.init.constant_(model.score.weight, math.nan)
    with pytest.raises(ValueError, match="'GPT2ForSequenceClassification' gave no finite score"):
        build(tokenizer, [lambda prompts, completions: [1.0, 1.0], model]).score(*texts, {})


def test_a_response_nobody_scored_is_refused(tokenizer, texts):
    with pytest.raises(ValueError, match="no finite score for the prompt ' the cat'"):
        build(tokenizer, [lambda prompts, completions: [None, 1.0]]).score(*texts, {})


def test_wrong_numbers_of_scores_and_weights_are_refused(tokenizer, texts):
    def short(prompts, completions):
        return [1.0]

    with pytest.raises(ValueError, match="'short' returned 1 scores for 2 completions"):
        build(tokenizer, [short]).score(*texts, {})
    with pytest.raises(ValueError, match="returned 3 scores for 2 completions"):
        build(tokenizer, [lambda prompts, completions: [1.0] * 3]).score(*texts, {})
    for weights in ([], [1.0, 2.0]):
        with pytest.raises(ValueError, match=f"`reward_weights` has {len(weights)} values for 1 reward functions"):
            build(tokenizer, [short], weights=weights)


def test_what_is_no_list_of_scores_names_its_function(tokenizer, texts):
    def fine(prompts, completions):
        return [1.0, 2.0]

    def nothing(prompts, completions):
        return None

    with pytest.raises(ValueError, match="'nothing' returned None; return a list with one float"):
        build(tokenizer, [fine, nothing]).score(*texts, {})
    with pytest.raises(ValueError, match="returned \\['a', 'b'\\]; return floats"):
        build(tokenizer, [fine, lambda prompts, completions: ["a", "b"]]).score(*texts, {})


def test_a_function_that_takes_no_columns_is_refused_where_there_are_some(tokenizer, texts):
    def fine(prompts, completions):
        return [1.0, 2.0]

    assert build(tokenizer, [fine]).score(*texts, {}).raw.tolist() == [1.0, 2.0]
    with pytest.raises(
        ValueError, match=r"'fine' cannot be called with prompts, completions and the columns \['note'\]"
    ):
        build(tokenizer, [fine]).score(*texts, {"note": ["x", "y"]})


def test_names_of_models_and_functions(make_classifier):
    model = make_classifier()
    assert function_name(model) == "GPT2ForSequenceClassification"
    model.config._name_or_path = "some/where/judge/"
    assert function_name(model) == "judge"
    assert function_name(len) == "len"
    assert function_name(functools.partial(len)) == "partial"


def test_a_function_that_tells_no_signature_is_called(tokenizer, texts):
    class Silent:
        @property
        def __signature__(self):
            raise ValueError("no signature found")  # as `inspect` does for much of what is written in C

        def __call__(self, prompts, completions):
            return [2.0, 3.0]

    assert build(tokenizer, [Silent()]).score(*texts, {}).raw.tolist() == [2.0, 3.0]
