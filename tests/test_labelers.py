"""Labellers and the scores they label by: choices, seeded noise, log-odds by hand, no effect of the batch."""

import math
from collections import Counter

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from trl_ziegler.labelers import (
    CopiedShare,
    Labeler,
    ReferenceOverlap,
    ScoreFunction,
    ScoreLabeler,
    SentimentScorer,
    VividnessScorer,
)
from trl_ziegler.metrics import Copying, Rouge

TEXTS = [
    " the cat was very good.",
    " she loved it",
    " a dull old house and a cold garden with the new dog in it.",
    " we hated it.",
    " he found the warm house on the bright day, and they saw it.",
]


def numbers(prompts, completions, **columns):
    """The score of a completion that is written as a number."""
    return [float(completion) for completion in completions]


class TestScoreLabeler:
    def test_picks_the_highest_score_for_any_number_of_candidates(self):
        labels = ScoreLabeler(numbers).label(
            ["p", "q", "r"], [["1", "3", "2"], ["0.5", "-1"], ["-3", "-2", "-1", "-4"]]
        )
        assert labels == [1, 0, 2]

    def test_lowest_index_wins_a_tie(self):
        assert ScoreLabeler(numbers).label(["p", "q"], [["1", "2", "2"], ["0", "0", "0", "0"]]) == [1, 0]

    def test_score_function_is_called_once_with_flat_lists_and_repeated_columns(self):
        calls = []

        def score(prompts, completions, facts):
            calls.append((prompts, completions, facts))
            return [0.0, 1.0, 1.0, 0.0, 0.0]

        labels = ScoreLabeler(score).label(["p", "q"], [["a", "b"], ["c", "d", "e"]], facts=[7, 8])
        assert labels == [1, 0]
        assert calls == [(["p", "p", "q", "q", "q"], ["a", "b", "c", "d", "e"], [7, 7, 8, 8, 8])]

    def test_error_rate_one_picks_each_other_candidate_equally_often(self):
        labels = ScoreLabeler(numbers, error_rate=1.0).label([str(i) for i in range(3000)], [["0", "5", "1"]] * 3000)
        counts = Counter(labels)
        assert counts[1] == 0
        assert counts[0] / 3000 == pytest.approx(0.5, abs=0.03)

    def test_error_rate_is_the_share_of_slips(self):
        labels = ScoreLabeler(numbers, error_rate=0.3, seed=1).label(
            [str(i) for i in range(4000)], [["0", "5", "1", "2"]] * 4000
        )
        assert sum(label != 1 for label in labels) / 4000 == pytest.approx(0.3, abs=0.025)

    @pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.75), (0.5, 0.9), (1e-6, 1.0)])
    def test_boltzmann_choice_has_the_stated_odds(self, temperature, share):
        # scores 0 and ln 3: odds 3 : 1 at temperature 1, 9 : 1 at 1/2, the argmax at 0
        labeler = ScoreLabeler(numbers, boltzmann_temperature=temperature)
        labels = labeler.label([str(i) for i in range(4000)], [["0", str(math.log(3.0))]] * 4000)
        assert sum(labels) / 4000 == pytest.approx(share, abs=0.025)

    def test_boltzmann_choice_survives_large_scores(self):
        assert ScoreLabeler(numbers, boltzmann_temperature=1.0).label(["p"], [["-5000", "5000"]]) == [1]

    @pytest.mark.parametrize("noise", [{"error_rate": 0.5}, {"boltzmann_temperature": 3.0}])
    def test_noise_of_a_record_does_not_depend_on_order_or_batch(self, noise):
        prompts, completions = [str(i) for i in range(40)], [["0", "1", "2"]] * 40
        together = ScoreLabeler(numbers, **noise).label(prompts, completions)
        labeler = ScoreLabeler(numbers, **noise)
        alone = [
            labeler.label([prompt], [row])[0] for prompt, row in list(zip(prompts, completions, strict=True))[::-1]
        ]
        assert alone[::-1] == together
        assert ScoreLabeler(numbers, seed=1, **noise).label(prompts, completions) != together

    def test_position_bias_is_a_price_that_grows_with_the_place(self):
        # prices 0, 0.5, 1: the scores become 0, 0.4, -0.1, then 0, 0.6, 0.3, then 0, 0.4, 0.5
        rows = [["0", "0.9", "0.9"], ["0", "1.1", "1.3"], ["0", "0.9", "1.5"]]
        labeler = ScoreLabeler(numbers, position_bias=1.0)
        assert labeler.label(["p", "q", "r"], rows) == [1, 1, 2]
        assert labeler.rank(["p", "q", "r"], rows) == [[1, 0, 2], [1, 2, 0], [2, 1, 0]]
        assert ScoreLabeler(numbers, position_bias=-1.0).label(["p"], [["0.9", "0", "0"]]) == [2]

    def test_position_bias_pulls_a_noisy_labeller_to_the_first_place(self):
        # prices 0 and ln 3 at temperature 1: the first of two equals has odds of 3 : 1
        labeler = ScoreLabeler(numbers, boltzmann_temperature=1.0, position_bias=math.log(3.0))
        labels = labeler.label([str(i) for i in range(4000)], [["2", "2"]] * 4000)
        assert labels.count(0) / 4000 == pytest.approx(0.75, abs=0.025)

    def test_two_kinds_of_noise_are_refused(self):
        with pytest.raises(ValueError, match=r"error_rate=0.1 and boltzmann_temperature=1.0.*only one"):
            ScoreLabeler(numbers, error_rate=0.1, boltzmann_temperature=1.0)

    @pytest.mark.parametrize(
        "options",
        [{"error_rate": 1.5}, {"error_rate": -0.1}, {"boltzmann_temperature": 0.0}, {"position_bias": math.inf}],
    )
    def test_noise_out_of_range_is_refused_by_name_and_value(self, options):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            ScoreLabeler(numbers, **options)

    @pytest.mark.parametrize("bad", ["nan", "inf"])
    def test_non_finite_score_names_its_prompt_and_completion(self, bad):
        with pytest.raises(ValueError, match=rf"returned {bad} for prompt 'second' and completion '{bad}'"):
            ScoreLabeler(numbers).label(["first", "second"], [["1", "2"], ["3", bad]])

    def test_single_candidate_is_refused(self):
        with pytest.raises(ValueError, match=r"completions\[1\]=\['3'\].*at least 2"):
            ScoreLabeler(numbers).label(["p", "q"], [["1", "2"], ["3"]])

    def test_lengths_that_disagree_are_refused(self):
        with pytest.raises(ValueError, match="completions has 1 rows for 2 prompts"):
            ScoreLabeler(numbers).label(["p", "q"], [["1", "2"]])
        with pytest.raises(ValueError, match="facts has 1 rows for 2 prompts"):
            ScoreLabeler(numbers).label(["p", "q"], [["1", "2"]] * 2, facts=[1])
        with pytest.raises(ValueError, match="returned 1 scores for 2 completions"):
            ScoreLabeler(lambda prompts, completions: [0.0]).label(["p"], [["1", "2"]])


class TestRanking:
    def test_is_from_the_best_to_the_worst_for_any_number_of_candidates(self):
        completions = [["1", "3", "2"], ["0.5", "-1"], ["-3", "-2", "-1", "-4"]]
        rankings = ScoreLabeler(numbers).rank(["p", "q", "r"], completions)
        assert rankings == [[1, 2, 0], [0, 1], [2, 1, 0, 3]]

    def test_equal_scores_keep_their_order(self):
        assert ScoreLabeler(numbers).rank(["p"], [["1", "2", "1", "2"]]) == [[1, 3, 0, 2]]

    @pytest.mark.parametrize("noise", [{}, {"error_rate": 0.5}, {"boltzmann_temperature": 2.0}])
    def test_begins_with_the_label(self, noise):
        labeler, prompts, completions = (
            ScoreLabeler(numbers, **noise),
            [str(i) for i in range(200)],
            [list("2013")] * 200,
        )
        rankings = labeler.rank(prompts, completions)
        assert [order[0] for order in rankings] == labeler.label(prompts, completions)
        assert all(sorted(order) == [0, 1, 2, 3] for order in rankings)
        assert (len({tuple(order) for order in rankings}) > 3) == bool(noise)

    def test_a_slip_exchanges_the_best_with_the_one_taken_for_it(self):
        rankings = ScoreLabeler(numbers, error_rate=1.0).rank([str(i) for i in range(3000)], [["0", "5", "1"]] * 3000)
        counts = Counter(map(tuple, rankings))
        assert set(counts) == {(2, 1, 0), (0, 2, 1)}  # from 1, 2, 0: the first with the second, or with the last
        assert counts[2, 1, 0] / 3000 == pytest.approx(0.5, abs=0.03)

    def test_error_rate_is_the_share_of_slips(self):
        rankings = ScoreLabeler(numbers, error_rate=0.3).rank([str(i) for i in range(4000)], [list("0512")] * 4000)
        assert sum(order != [1, 3, 2, 0] for order in rankings) / 4000 == pytest.approx(0.3, abs=0.025)

    def test_boltzmann_rankings_have_the_stated_odds(self):
        # weights 3 : 1 : 2, so the order 0, 2, 1 has 3/6 * 2/3, and so on (Plackett-Luce)
        scores = [str(math.log(weight)) for weight in (3, 1, 2)]
        labeler = ScoreLabeler(numbers, boltzmann_temperature=1.0)
        counts = Counter(map(tuple, labeler.rank([str(i) for i in range(6000)], [scores] * 6000)))
        odds = {
            (0, 2, 1): 1 / 3,
            (0, 1, 2): 1 / 6,
            (2, 0, 1): 1 / 4,
            (2, 1, 0): 1 / 12,
            (1, 0, 2): 1 / 10,
            (1, 2, 0): 1 / 15,
        }
        assert {order: counts[order] / 6000 for order in odds} == pytest.approx(odds, abs=0.02)

    def test_columns_reach_the_score_and_what_label_refuses_is_refused(self):
        def score(prompts, completions, facts):
            return [float(completion) * fact for completion, fact in zip(completions, facts, strict=True)]

        assert ScoreLabeler(score).rank(["p", "q"], [["1", "2"]] * 2, facts=[1, -1]) == [[1, 0], [0, 1]]
        with pytest.raises(ValueError, match=r"completions\[0\]=\['3'\].*at least 2"):
            ScoreLabeler(numbers).rank(["p"], [["3"]])


class TestOverlap:
    SUMMARIES = ("The cat sat on it.", "She left! We saw the dog.", "", "Été 12")
    PROMPTS = ("We ran. The cat sat on it. She left!", "We saw the dog. He ran.", "Nothing.", "Été 12 again.")
    REFERENCES = ("the cat ran", "We saw the dog.", "a dog", "12 dogs")

    def test_reference_overlap_is_the_mean_of_rouge(self):
        scores = ReferenceOverlap()(list(self.PROMPTS), list(self.SUMMARIES), reference=list(self.REFERENCES))
        result = Rouge().compute(predictions=self.SUMMARIES, references=self.REFERENCES, per_example=True)
        assert scores == [row["mean"] for row in result["per_example"]]
        assert scores[0] == pytest.approx((0.5 + 1 / 3 + 0.5) / 3)  # 2 of 5 and 3 words, 1 of 4 and 2 pairs

    def test_copied_share_of_each_is_that_of_copying(self):
        scores = CopiedShare()(list(self.PROMPTS), list(self.SUMMARIES), reference=list(self.REFERENCES))
        for score, summary, prompt in zip(scores, self.SUMMARIES, self.PROMPTS, strict=True):
            assert score == Copying().compute(predictions=[summary], sources=[prompt])["copied_share"]
        assert scores == [1.0, 0.5, None, 1.0]

    def test_they_read_chat_messages_and_know_their_names(self):
        chat = [{"role": "assistant", "content": "the cat ran"}]
        assert ReferenceOverlap()([chat], [chat], reference=["the cat ran"]) == [1.0]
        source = [{"role": "user", "content": "the cat"}, {"role": "user", "content": "ran away"}]
        assert CopiedShare()([source], [chat]) == [1.0]
        assert (ReferenceOverlap().__name__, CopiedShare().__name__) == ("rouge_mean", "copied_share")

    def test_overlap_serves_as_a_labeller_with_its_column(self):
        labels = ScoreLabeler(ReferenceOverlap()).label(
            ["p", "q"], [["a cat", "a dog"]] * 2, reference=["a dog", "a cat"]
        )
        assert labels == [1, 0]


class TestSentimentScorer:
    def test_two_labels_give_the_difference_of_logits(self, make_classifier, tokenizer):
        model = make_classifier("gpt2", num_labels=2).eval()
        logits = model(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits[0]
        expected = (logits[1] - logits[0]).item()
        assert SentimentScorer(model, tokenizer).score_texts(TEXTS[:1])[0] == pytest.approx(expected, abs=1e-5)
        reverse = SentimentScorer(model, tokenizer, positive_label=0)
        assert reverse.score_texts(TEXTS[:1])[0] == pytest.approx(-expected, abs=1e-5)

    def test_one_label_gives_the_logit(self, make_classifier, tokenizer):
        model = make_classifier("gpt2", num_labels=1).eval()
        expected = model(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits.item()
        assert SentimentScorer(model, tokenizer).score_texts(TEXTS[:1])[0] == pytest.approx(expected, abs=1e-5)

    def test_three_labels_give_the_log_odds_against_all_others(self, make_classifier, tokenizer):
        model = make_classifier("gpt2", num_labels=3).eval()
        model.config.id2label = {0: "negative", 1: "neutral", 2: "positive"}
        p = model(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits[0].softmax(0)[2].item()
        score = SentimentScorer(model, tokenizer).score_texts(TEXTS[:1])[0]
        assert score == pytest.approx(math.log(p / (1 - p)), abs=1e-5)

    @pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
    @pytest.mark.parametrize("pad_token", [None, "eos", "byte"])
    def test_batch_does_not_change_a_score(self, make_classifier, tokenizer, kind, pad_token):
        model = make_classifier(kind, num_labels=2)
        model.config.pad_token_id = {None: None, "eos": tokenizer.eos_token_id, "byte": 3}[pad_token]
        scorer = SentimentScorer(model, tokenizer, batch_size=3)
        alone = [scorer.score_texts([text])[0] for text in TEXTS]
        assert max(alone) - min(alone) > 1e-3  # the texts differ, so order is seen
        assert scorer.score_texts(TEXTS) == pytest.approx(alone, abs=1e-5)
        assert scorer.score_texts(TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)

    def test_batch_does_not_change_the_score_of_an_encoder(self, tokenizer):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        scorer = SentimentScorer(BertForSequenceClassification(config), tokenizer)
        assert scorer.score_texts(TEXTS) == pytest.approx([scorer.score_texts([t])[0] for t in TEXTS], abs=1e-5)

    @pytest.mark.parametrize("final", ["<|endoftext|>", "!"])  # "!" is id 0
    def test_final_token_is_read_whatever_its_id_and_the_config_is_left_as_it_was(
        self, make_classifier, tokenizer, final
    ):
        model = make_classifier("gpt2", num_labels=1).eval()
        text = TEXTS[0] + final
        expected = model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item()
        scores = SentimentScorer(model, tokenizer).score_texts([text, *TEXTS])
        assert scores[0] == pytest.approx(expected, abs=1e-5)
        assert model.config.pad_token_id is None

    def test_empty_text_is_scored_on_bos_and_no_text_gives_no_score(self, make_classifier, tokenizer):
        scorer = SentimentScorer(make_classifier("gpt2", num_labels=1), tokenizer)
        assert scorer.score_texts(["", TEXTS[0]])[0] == pytest.approx(
            scorer.score_texts([tokenizer.bos_token])[0], abs=1e-5
        )
        assert scorer([], []) == []

    def test_completion_or_whole_text_or_messages_can_be_scored(self, make_classifier, tokenizer):
        model = make_classifier("gpt2", num_labels=1)
        whole = SentimentScorer(model, tokenizer, text="prompt+completion")
        completion = SentimentScorer(model, tokenizer)
        assert whole(["She saw"], TEXTS[:1], mood=[1]) == pytest.approx(
            completion.score_texts(["She saw" + TEXTS[0]]), abs=1e-5
        )
        assert completion(["She saw"], TEXTS[:1]) == pytest.approx(completion.score_texts(TEXTS[:1]), abs=1e-5)
        message = [{"role": "assistant", "content": TEXTS[0]}]
        assert completion([message], [message]) == pytest.approx(completion.score_texts(TEXTS[:1]), abs=1e-5)

    def test_serves_as_a_labellers_score(self, make_classifier, tokenizer):
        scorer = SentimentScorer(make_classifier("gpt2", num_labels=2), tokenizer)
        scores = scorer([""] * len(TEXTS), TEXTS)
        assert ScoreLabeler(scorer).label([""], [TEXTS]) == [scores.index(max(scores))]

    @pytest.mark.parametrize("names", [["NEGATIVE", "POSITIVE"], ["neg", "Pos"], ["LABEL_0", "LABEL_1"]])
    def test_finds_the_usual_names_of_the_positive_label(self, make_classifier, tokenizer, names):
        model = make_classifier("gpt2", num_labels=2)
        model.config.id2label = dict(enumerate(names))
        assert SentimentScorer(model, tokenizer).positive_index == 1
        model.config.id2label = dict(enumerate(names[::-1]))
        assert SentimentScorer(model, tokenizer).positive_index == 0

    @pytest.mark.parametrize("choice", [None, "great", 5])
    def test_unknown_positive_label_is_refused_with_the_labels(self, make_classifier, tokenizer, choice):
        model = make_classifier("gpt2", num_labels=2)
        model.config.id2label = {0: "toxic", 1: "fine"}
        with pytest.raises(ValueError, match=r"positive_label=.*'toxic'.*'fine'"):
            SentimentScorer(model, tokenizer, positive_label=choice)
        assert SentimentScorer(model, tokenizer, positive_label="fine").positive_index == 1

    def test_text_beyond_the_context_is_refused_unless_it_may_be_cut(self, make_classifier, tokenizer):
        model, long = make_classifier("gpt2", num_labels=1), " cat" * 300
        with pytest.raises(ValueError, match=r"300 tokens exceeds the classifier's 256.*max_length=256"):
            SentimentScorer(model, tokenizer).score_texts([long])
        cut = SentimentScorer(model, tokenizer, max_length=10).score_texts([long])
        assert cut == pytest.approx(SentimentScorer(model, tokenizer).score_texts([" cat" * 10]))

    def test_loads_model_and_tokenizer_from_a_folder(self, make_classifier, tokenizer, tmp_path):
        model = make_classifier("gpt2", num_labels=2)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        expected = SentimentScorer(model, tokenizer).score_texts(TEXTS)
        assert SentimentScorer(tmp_path).score_texts(TEXTS) == pytest.approx(expected, abs=1e-6)

    def test_wrong_arguments_are_refused(self, make_classifier, tokenizer):
        model = make_classifier("gpt2", num_labels=1)
        with pytest.raises(ValueError, match="text='both'"):
            SentimentScorer(model, tokenizer, text="both")
        with pytest.raises(ValueError, match="batch_size=0"):
            SentimentScorer(model, tokenizer, batch_size=0)
        with pytest.raises(ValueError, match="tokenizer=None"):
            SentimentScorer(model)
        with pytest.raises(ValueError, match="1 prompts do not match 2 completions"):
            SentimentScorer(model, tokenizer)(["p"], ["a", "b"])


class TestVividnessScorer:
    def test_counts_different_listed_words_per_ten_words(self):
        text = "The pale moon hung over the silver lake and the mossy wall."  # 3 of 12 words
        assert VividnessScorer()([""], [text]) == [2.5]

    def test_repetition_and_case_do_not_count(self):
        text = "Red red RED leaves fell on the old quiet town there."  # 1 of 11 words
        assert VividnessScorer()([""], [text])[0] == pytest.approx(10 / 11)

    def test_short_texts_count_as_ten_words(self):
        assert VividnessScorer()(["", "", ""], ["Red.", "", "Nothing here."], extra=[1, 2, 3]) == [1.0, 0.0, 0.0]

    def test_vivid_prose_beats_plain_prose(self):
        plain, vivid = VividnessScorer()(
            ["", ""],
            [
                "He went to the shop and came back later.",
                "A rusty gate creaking in the cold blue dusk, damp with smoky fog.",
            ],
        )
        assert vivid > plain == 0.0


def test_the_protocols_are_met(make_classifier, tokenizer):
    score: ScoreFunction = SentimentScorer(make_classifier("gpt2", num_labels=1), tokenizer)
    labeler: Labeler = ScoreLabeler(score)
    assert labeler.label(["p"], [["good", "good"]]) == [0]
    assert [score.__name__, VividnessScorer().__name__] == ["sentiment", "vividness"]
