"""The embedded world: reproducible corpora, splits that do not leak, truth worked out by hand, an exact tokenizer."""

import random

import pytest
import torch
from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel

from trl_ziegler.experiments.laptop import (
    build_tokenizer,
    classifier_config,
    lm_config,
    passages,
    reviews,
    true_sentiment,
    true_vividness,
)
from trl_ziegler.experiments.laptop import words as w
from trl_ziegler.experiments.laptop.grammar import REVIEW, STORY, VERDICTS, Scene, fill, sentence, tokens

SPLITS = ["train", "valid", "test"]
PINNED = (
    "Anna was delighted in winter. "
    "Sam gave her a yellow chair at noon. "
    "She was truly glad for an hour. "
    "Sam asked about the knife, and she answered. "
    "Anna sat by the yellow fence and took the silver book. "
    "There was much joy in the velvet red beach."
)


@pytest.fixture(scope="module")
def stories() -> dict[str, list[str]]:
    return {split: passages(300, seed=0, split=split) for split in SPLITS}


@pytest.fixture(scope="module")
def ratings() -> dict[str, list[dict]]:
    return {split: reviews(400, seed=0, split=split) for split in SPLITS}


@pytest.fixture(scope="module")
def world_tokenizer():
    return build_tokenizer(passages(1500, seed=0) + [row["text"] for row in reviews(1000, seed=0)])


def sentences(text: str) -> list[str]:
    return [sentence + "." for sentence in text.rstrip(".").split(". ")]


class TestCorpora:
    @pytest.mark.parametrize("corpus", [passages, reviews])
    def test_same_seed_same_corpus_and_other_seed_other_corpus(self, corpus):
        assert corpus(20, seed=3) == corpus(20, seed=3)
        assert corpus(20, seed=3) != corpus(20, seed=4)
        assert corpus(20, seed=3, split="valid") != corpus(20, seed=3, split="test")

    def test_corpus_is_pinned(self):
        # a change of words or grammar moves every number measured on this world: make it knowingly
        assert passages(1, seed=0)[0] == PINNED

    def test_splits_share_no_passage_and_no_opening(self, stories):
        openings = {split: {tuple(sentences(text)[:2]) for text in stories[split]} for split in SPLITS}
        later = {tuple(sentences(text)[:2]) for text in passages(300, seed=1)}  # another seed of the train split
        assert not openings["train"] & openings["valid"] and not openings["train"] & openings["test"]
        assert not openings["valid"] & openings["test"]
        assert not later & (openings["valid"] | openings["test"])

    def test_passages_are_paragraphs_of_three_to_six_sentences_of_five_to_fourteen_tokens(self, stories):
        for text in stories["train"]:
            assert 3 <= len(sentences(text)) <= 6
            assert all(5 <= len(tokens(sentence)) <= 14 for sentence in sentences(text))
            assert text.endswith(".") and text[0].isupper() and "{" not in text and "  " not in text

    def test_passages_carry_every_kind_of_mood(self, stories):
        moods = [true_sentiment(text) for text in stories["train"]]
        assert sum(mood > 1 for mood in moods) > 60 and sum(mood < -1 for mood in moods) > 60
        assert sum(abs(mood) <= 1 for mood in moods) > 60

    def test_vividness_varies(self, stories):
        shares = [true_vividness(text) for text in stories["train"]]
        assert sum(share == 0 for share in shares) > 30 and sum(share > 0.15 for share in shares) > 15

    def test_typical_continuation_holds_a_period_late_enough_to_be_cut_at(self, stories):
        stream = tokens(" ".join(stories["train"]))
        starts = [i + 1 for i, token in enumerate(stream[:-24]) if token == "."]
        assert sum("." in stream[i + 16 : i + 24] for i in starts) / len(starts) > 0.8

    def test_held_out_words_occur_in_passages_and_test_reviews_only(self, stories, ratings):
        used = {split: set(tokens(" ".join(row["text"] for row in ratings[split]))) for split in SPLITS}
        assert not w.HELD_OUT & used["train"] and not w.HELD_OUT & used["valid"]
        assert len(w.HELD_OUT & used["test"]) > 12
        assert set(tokens(" ".join(stories["train"]))) >= w.HELD_OUT

    def test_an_eighth_of_the_sentiment_words_is_held_out(self):
        charged = set(w.polarities()) | set(w.AMBIGUOUS)
        assert charged >= w.HELD_OUT
        assert 0.11 < len(w.HELD_OUT) / len(charged) < 0.14

    def test_reviews_are_balanced_and_their_labels_agree_with_the_truth_but_not_always(self, ratings):
        rows = ratings["train"] + reviews(1000, seed=1)
        assert sum(row["label"] for row in rows) / len(rows) == pytest.approx(0.5, abs=0.05)
        right = [(true_sentiment(row["text"]) > 0) == (row["label"] == 1) for row in rows]
        assert 0.85 < sum(right) / len(right) < 0.96

    @pytest.mark.parametrize("corpus", [passages, reviews])
    def test_unknown_split_is_refused(self, corpus):
        with pytest.raises(ValueError, match=r"split='dev'.*'train', 'valid' or 'test'"):
            corpus(1, seed=0, split="dev")

    def test_vocabulary_is_small(self, stories):
        assert 350 <= len(set(tokens(" ".join(passages(1500, seed=0))))) <= 600


class TestGrammar:
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_charged_templates_mean_their_polarity(self, sign):
        scene = Scene(random.Random(0), vividness=0.5)
        for template in (STORY.charged + STORY.clauses + REVIEW.charged + REVIEW.clauses) * 40:
            text = fill(template, scene, sign)
            assert true_sentiment(text) * sign > 0, text

    def test_verdicts_mean_their_polarity(self):
        assert all(true_sentiment(text) * sign > 0 for sign, texts in VERDICTS.items() for text in texts)

    def test_neutral_templates_mean_nothing(self):
        scene = Scene(random.Random(0), vividness=1.0)
        assert all(true_sentiment(fill(template, scene, 0)) == 0 for template in (STORY.neutral + REVIEW.neutral) * 40)

    def test_no_sentence_exceeds_fourteen_tokens(self):
        scene = Scene(random.Random(0), vividness=1.0)
        assert max(len(tokens(sentence(scene, STORY, sign))) for sign in (-1, 0, 1) * 700) == 14


class TestTrueSentiment:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("She opened the door.", 0.0),
            ("She was happy.", 1.0),
            ("She was sad.", -1.0),
            ("She was very happy.", 1.5),
            ("She was a little sad.", -0.5),
            ("She was not happy.", -0.5),
            ("The soup was not bad.", 0.5),
            ("She was not very happy.", -0.75),
            ("He never cried.", 0.5),
            ("There was no peace in the village.", -0.5),
            ("She was not at the old market and was happy.", 1.0),  # the negator is too far away
            ("It was not, happy.", 1.0),  # and does not reach over a comma
            ("He was not sad and lonely.", -0.5),  # nor past the first sentiment word: 0.5 - 1
            ("She was happy, but the soup was bad.", -0.5),  # 0.5 - 1
            ("Although the soup was bad, she was happy.", 0.5),  # -0.5 + 1
            ("Although the soup was not bad, she was very happy.", 1.75),  # 0.25 + 1.5
            ("The cold lemonade was on the table.", 1.0),
            ("The cold soup was on the table.", -1.0),
            ("The soup was very cold.", -1.5),
            ("The lemonade was not cold.", -0.5),
            ("The cold key was on the table.", 0.0),
            ("The lemonade and the soup were cold.", -1.0),  # the nearer noun
            ("The soup was cold, but the bread was warm.", 0.5),  # -0.5 + 1: each by its own noun
            ("She was happy. He cried. They left.", 0.0),
            ("SHE WAS HAPPY. He was glad", 2.0),  # any case, and an unfinished sentence counts
            ("", 0.0),
        ],
    )
    def test_by_hand(self, text, expected):
        assert true_sentiment(text) == expected


class TestTrueVividness:
    def test_by_hand(self):
        assert true_vividness("The red cup was on the mossy red wall.") == pytest.approx(2 / 9)
        assert true_vividness("The cup was on the wall.") == 0.0
        assert true_vividness("") == 0.0

    def test_no_word_is_both_vivid_and_charged(self):
        vivid = set(w.COLOURS + w.TEXTURES + w.MANNERS)
        assert not vivid & (set(w.polarities()) | set(w.AMBIGUOUS))


class TestTokenizer:
    def test_common_words_and_the_period_are_one_token_each(self, world_tokenizer, stories):
        assert len(world_tokenizer.encode(".")) == 1
        for text in stories["valid"][:50]:
            assert len(world_tokenizer.encode(text)) == len(tokens(text))

    @pytest.mark.parametrize("text", ["Ella  smiled.\n\n", " Zürich, 3 €!", "unknownword", "<|endoftext|>", ""])
    def test_decoding_is_exact_for_any_text(self, world_tokenizer, text):
        assert world_tokenizer.decode(world_tokenizer.encode(text)) == text

    def test_has_eos_and_no_pad(self, world_tokenizer):
        assert world_tokenizer.eos_token == "<|endoftext|>"
        assert world_tokenizer.pad_token is None
        assert 600 < len(world_tokenizer) <= 900

    def test_survives_a_folder(self, world_tokenizer, stories, tmp_path):
        world_tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded(stories["test"])["input_ids"] == world_tokenizer(stories["test"])["input_ids"]
        assert loaded.pad_token is None and len(loaded) == len(world_tokenizer)

    def test_vocabulary_keeps_the_most_frequent_words(self):
        small = build_tokenizer(["the cat. the dog. the cat."], vocab_size=259)
        assert len(small) == 259
        assert small.tokenize("the cat the") == ["t", "h", "e", "Ġcat", "Ġthe"]

    def test_vocabulary_without_room_is_refused(self):
        with pytest.raises(ValueError, match=r"vocab_size=257.*at least 258"):
            build_tokenizer(["the cat."], vocab_size=257)


class TestTinyModels:
    def test_language_model_is_small_and_deterministic_in_training_mode(self, world_tokenizer):
        model = GPT2LMHeadModel(lm_config(world_tokenizer)).train()
        ids = torch.tensor([world_tokenizer.encode("Ella walked to the garden.")])
        assert model.num_parameters() < 400_000
        assert torch.equal(model(ids).logits, model(ids).logits)  # no dropout

    def test_initial_weights_keep_gpt2s_relation_to_the_width(self, world_tokenizer):
        assert lm_config(world_tokenizer, n_embd=192).initializer_range == pytest.approx(0.04)

    def test_classifier_takes_padded_batches_and_names_its_labels(self, world_tokenizer):
        model = GPT2ForSequenceClassification(classifier_config(world_tokenizer)).eval()
        ids = world_tokenizer.encode("The soup was bad.")
        padded = torch.tensor([[*ids, world_tokenizer.eos_token_id]])
        torch.testing.assert_close(model(padded).logits, model(torch.tensor([ids])).logits)
        assert model.config.label2id["POSITIVE"] == 1
