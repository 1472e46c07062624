"""Summaries of the embedded world: reproducible corpora, facts read back exactly, a truth worked out by hand."""

import random
import re
import statistics

import pytest

from trl_ziegler.experiments.laptop import (
    SummaryScorer,
    build_tokenizer,
    facts_in,
    main_facts,
    make_news,
    make_posts,
    summary_parts,
)
from trl_ziegler.experiments.laptop.facts import NEWS, POSTS, Document, Fact, pick, split_of
from trl_ziegler.experiments.laptop.grammar import finish, tokens
from trl_ziegler.experiments.laptop.news import CLOSINGS, DETAILS, QUOTES, article
from trl_ziegler.experiments.laptop.posts import ASIDES, ENDINGS, GREETINGS, PREAMBLES, QUESTIONS, post
from trl_ziegler.labelers import ScoreLabeler

SPLITS = ["train", "valid", "test"]
DOMAINS = {"posts": POSTS, "news": NEWS}
MAKERS = {"posts": post, "news": article}
COLUMNS = {"posts": ["post", "summary"], "news": ["article", "highlights"]}
CORPORA = {"posts": make_posts, "news": make_news}
kinds = pytest.mark.parametrize("kind", ["posts", "news"])

ANNA_CAR, ANNA_ROME, BEN_RING = (
    Fact("Anna", "bought", "car"),
    Fact("Anna", "moved", "Rome"),
    Fact("Ben", "lost", "ring"),
)
POST = (
    "Hello all. I need some advice.\n"
    "So Anna bought a car. Everyone had admired that car. Ben lost a ring. Anna moved to Rome without a word.\n"
    "What should I do?"
)


PINNED = {
    "posts": (
        "A friend said that I should ask here.\nIt turned out that my aunt cancelled the dinner and married Daniel. "
        "My aunt made forty dollars in a game.\nWhy does nobody listen?",
        "The dinner was cancelled by my aunt. Daniel is married now to my aunt. Forty dollars were won by my aunt.",
    ),
    "news": (
        "The police fired eighty workers before the summer. Last year it was not eighty. The police sued Lewis."
        "\nLewis did not reply. Hundreds of people came to watch.\nThe final decision rests with the voters.",
        "The police fired eighty workers before the summer.\nLewis was sued by the police.",
    ),
}


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, list[Document]]]:
    """150 documents of each kind and split, with what they were built from."""
    return {
        kind: {split: [make(rng, split) for _ in range(150)] for split in SPLITS}
        for kind, make in MAKERS.items()
        for rng in [random.Random(0)]
    }


def built_from(document: Document) -> set[Fact]:
    return {fact for sentence in document.told for fact in sentence.facts}


class TestCorpora:
    @kinds
    def test_same_seed_same_corpus_and_other_seed_other_corpus(self, kind):
        make = CORPORA[kind]
        assert make(5, seed=3) == make(5, seed=3)
        assert make(5, seed=3) == make(9, seed=3)[:5]
        assert make(5, seed=3) != make(5, seed=4)
        assert make(5, seed=3, split="valid") != make(5, seed=3, split="test")

    @kinds
    def test_corpus_is_pinned(self, kind):
        # a change of words or forms moves every number measured on this world: make it knowingly
        assert CORPORA[kind](1, seed=0)[0] == dict(zip(COLUMNS[kind], PINNED[kind], strict=True))

    @kinds
    def test_unknown_split_is_refused(self, kind):
        with pytest.raises(ValueError, match=r"split='dev'.*'train', 'valid' or 'test'"):
            CORPORA[kind](1, seed=0, split="dev")

    @kinds
    def test_splits_share_no_set_of_main_facts_but_all_the_words(self, kind, documents):
        for split in SPLITS:
            assert all(split_of(main_facts(document.text)) == split for document in documents[kind][split])
        known = documents[kind]["train"] + documents[kind]["valid"]
        seen = {word for document in known for word in tokens(document.text)}
        test = {word for document in documents[kind]["test"] for word in tokens(document.text)}
        assert len(test - seen) < 0.04 * len(test)

    def test_there_are_thousands_of_facts(self):
        combinations = {
            name: len(domain.subjects) * sum(len(relation.objects) for relation in domain.relations)
            for name, domain in DOMAINS.items()
        }
        assert combinations["posts"] > 3_500 and combinations["news"] > 1_500

    @kinds
    def test_lengths_are_within_bounds(self, kind, documents):
        for document in documents[kind]["train"]:
            assert 24 <= len(tokens(document.text)) <= 52
            assert 8 <= len(tokens(" ".join(document.summary))) <= 26

    def test_words_are_few(self):
        rows = make_posts(1000, seed=0) + make_news(1000, seed=0)
        assert 500 <= len(set(tokens(" ".join(text for row in rows for text in row.values())))) <= 700

    @kinds
    def test_a_small_tokenizer_has_a_token_for_each_word(self, kind):
        texts = [
            text + "\n\nTL;DR: " + summary + "\n" for text, summary in map(dict.values, CORPORA[kind](600, seed=0))
        ]
        tokenizer = build_tokenizer(texts, vocab_size=900)
        assert len(tokenizer) < 900  # nothing was left out
        assert max(map(len, tokenizer(texts)["input_ids"])) <= 160
        assert len(tokenizer.encode("\n")) == 1

    @kinds
    def test_highlights_stand_on_a_line_each_and_a_summary_on_one(self, kind):
        separator = {"posts": " ", "news": "\n"}[kind]
        rng = random.Random(f"{kind}-train-0")
        expected = [separator.join(MAKERS[kind](rng, "train").summary) for _ in range(30)]
        assert [row[COLUMNS[kind][1]] for row in CORPORA[kind](30, seed=0)] == expected

    @kinds
    def test_texts_are_clean(self, kind):
        for row in CORPORA[kind](200, seed=1):
            document, summary = row.values()
            assert document == document.strip() and summary == summary.strip()
            assert not any(mark in document + summary for mark in ("{", "  ", "\n\n", " a a", ",,"))
            assert not re.search(r'(^|\s)"[a-z]', document)  # a quotation starts with a capital
            assert document.count("\n") == 2 or kind == "news"
            assert all(line[0].isupper() or line[0] == '"' for line in [*document.split("\n"), *summary.split("\n")])

    def test_a_post_hides_its_first_fact_behind_the_preamble_and_an_article_opens_with_it(self, documents):
        for document in documents["posts"]["train"]:
            assert not facts_in(document.text.split("\n")[0]) and not facts_in(document.text.split("\n")[-1])
        for document in documents["news"]["train"]:
            assert document.text.startswith(document.told[0].sentence)

    @kinds
    def test_references_are_true_mostly_about_main_facts_and_mostly_not_copied(self, kind, documents):
        train = documents[kind]["train"]
        parts = [summary_parts(document.text, " ".join(document.summary)) for document in train]
        assert {part.accuracy for part in parts} == {1.0}
        assert 0.8 < statistics.mean(part.coverage for part in parts) < 0.97
        said = [facts_in(" ".join(document.summary)) for document in train]
        minor = [facts - main_facts(document.text) for facts, document in zip(said, train, strict=True)]
        assert 0 < sum(map(bool, minor)) / len(train) < 0.2
        asks = [document.summary[-1] for document in train if not facts_in(document.summary[-1])]
        assert 0.35 < len(asks) / len(train) < 0.65 and len(set(asks)) == 4  # they tell nothing
        copied = [sentence in document.text for document in train for sentence in document.summary]
        assert 0.1 < statistics.mean(copied) < 0.35


class TestFactsIn:
    @kinds
    def test_every_form_of_every_relation_is_read_back(self, kind):
        domain, rng = DOMAINS[kind], random.Random(0)
        for relation in domain.relations:
            for form in relation.told + relation.short:
                for thing in relation.objects:
                    subject = rng.choice([name for name in domain.subjects if name != thing])
                    fact = Fact(subject, relation.name, thing)
                    for headline in (False, True):
                        text = finish(domain.say(fact, form, headline=headline))
                        assert facts_in(text) == {fact}, text

    @kinds
    def test_a_document_states_exactly_what_it_was_built_from(self, kind, documents):
        for document in [document for split in SPLITS for document in documents[kind][split]]:
            facts = built_from(document)
            hero = document.told[0].facts[0].subject
            assert facts_in(document.text) == facts
            assert main_facts(document.text) == {fact for fact in facts if fact.subject == hero}
            main = main_facts(document.text)
            assert 2 <= len(main) <= 3 and len(facts - main) <= 1
            kinds_of_object = {DOMAINS[kind].relation(fact).kind for fact in main}
            assert len(kinds_of_object) == len(main)  # none is mistaken for another's
        minor = [built_from(document) - main_facts(document.text) for document in documents[kind]["train"]]
        assert 0.15 < sum(map(bool, minor)) / len(minor) < 0.45

    @kinds
    def test_openers_and_tails_add_nothing(self, kind):
        domain = DOMAINS[kind]
        fact = domain.draw(random.Random(0), domain.subjects[0])
        clause = domain.say(fact, domain.relation(fact).told[0])
        for opener in domain.openers:
            for tail in domain.tails:
                assert facts_in(finish(f"{opener} {clause} {tail}")) == {fact}

    def test_what_surrounds_the_facts_states_nothing(self):
        rng = random.Random(0)
        for block in (GREETINGS, PREAMBLES, ASIDES, ENDINGS, QUESTIONS) * 20:
            assert not facts_in(" ".join(pick(rng, block, 2)))
        for block in (QUOTES, DETAILS, CLOSINGS) * 20:
            assert not facts_in(" ".join(pick(rng, block, 2)))
        for relation in POSTS.relations + NEWS.relations:
            assert not any(
                facts_in(remark.format(o=thing)) for remark in relation.remarks for thing in relation.objects
            )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Anna bought a car.", {ANNA_CAR}),
            ("anna BOUGHT a car", {ANNA_CAR}),
            ("A new car for Anna.", {ANNA_CAR}),
            ("Anna got a new car and lives in Rome now.", {ANNA_CAR, ANNA_ROME}),
            ("Anna got a new car, but the ring of Ben is gone.", {ANNA_CAR, BEN_RING}),
            ("Ben lost a ring and Anna bought a car and moved to Rome.", {BEN_RING, ANNA_CAR, ANNA_ROME}),
            ("People told me that Anna bought a car.", {ANNA_CAR}),
            ("Sister got a new car.", {Fact("sister", "bought", "car")}),
            ("My sister got a new car.", {Fact("sister", "bought", "car")}),
            ("My aunt hurt an arm.", {Fact("aunt", "hurt", "arm")}),
            ("Anna married Hugo.", {Fact("Anna", "married", "Hugo")}),
            ("Hugo was left by Ben.", {Fact("Ben", "left", "Hugo")}),
            ("Adams was sued by the bank.", {Fact("bank", "sued", "Adams")}),
            ("In the morning, the bank opened an office in Paris on Friday.", {Fact("bank", "office", "Paris")}),
            ("Anna bought a car.\nShe was happy.\nAnna moved to Rome!", {ANNA_CAR, ANNA_ROME}),
        ],
    )
    def test_by_hand(self, text, expected):
        assert facts_in(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "TL;DR:",
            "bought a car.",  # by whom?
            "She bought a car.",
            "My Anna bought a car.",
            "My bank opened new parks.",
            "A sister bought a car.",
            "Anna bought bought a car.",
            "Anna bought a.",
            "Anna a car bought.",
            "Anna bought a car a ring.",
            "Anna bought a Rome.",
            "Anna bought a car and.",
            "Anna bought a car and Rome.",  # half of it could be read
            "Anna bought a car last.",
            "Anna bought a car without a word last month without a word.",
            "So then Anna bought a car.",
            "Anna did not buy a car.",
            "The car was bought.",
            "Anna bought a cart.",
        ],
    )
    def test_garbled_or_empty_sentences_state_nothing(self, text):
        assert facts_in(text) == set()

    def test_a_garbled_sentence_spoils_no_other(self):
        assert facts_in("Anna Anna a car. Anna moved to Rome. Ben a ring lost") == {ANNA_ROME}

    def test_main_facts_are_about_the_first_subject(self):
        assert main_facts(POST) == {ANNA_CAR, ANNA_ROME}
        assert main_facts("Nothing happened.") == set()


class TestSummaryScorer:
    @pytest.mark.parametrize(
        ("summary", "accuracy", "coverage", "length"),
        [
            (" Anna got a new car.", 1.0, 0.5, 6),
            (" Anna got a new car. Rome is the new home of Anna.", 1.0, 1.0, 14),
            (" Anna got a new car. Anna bought a car.", 1.0, 0.5, 11),  # said twice
            (" Anna got a new car. Anna lives in Paris now.", 0.0, 0.5, 12),  # one right, one invented
            (" Anna got a new bike.", -1.0, 0.0, 6),
            (" Ben got a new car. Anna lives in Rome now. Ben hurt a leg.", -1 / 3, 0.5, 17),
            (" The ring of Ben is gone.", 1.0, 0.0, 7),  # true, and beside the point
            (" Thanks for reading.", 0.0, 0.0, 4),
            ("", 0.0, 0.0, 0),
        ],
    )
    def test_three_parts_by_hand(self, summary, accuracy, coverage, length):
        assert summary_parts(POST, summary) == (pytest.approx(accuracy), coverage, length)
        expected = accuracy + coverage - 0.01 * length
        assert SummaryScorer()([POST], [summary]) == [pytest.approx(expected)]
        weighted = SummaryScorer(coverage_weight=2.0, token_cost=0.1)([POST], [summary])
        assert weighted == [pytest.approx(accuracy + 2.0 * coverage - 0.1 * length)]

    def test_document_without_facts_covers_nothing(self):
        assert summary_parts("Hello all.", "Anna bought a car.") == (-1.0, 0.0, 5)

    def test_copying_is_not_punished(self):
        copied, in_own_words = "So Anna bought a car.", "Anna got a new car."
        assert copied in POST and len(tokens(copied)) == len(tokens(in_own_words))
        scores = SummaryScorer()([POST] * 2, [copied, in_own_words])
        assert scores[0] == scores[1]

    @kinds
    def test_copying_the_main_sentences_pays_about_as_well_as_the_reference(self, kind, documents):
        score = SummaryScorer().score
        train = documents[kind]["train"]
        reference = statistics.mean(score(document.text, " ".join(document.summary)) for document in train)
        copies = [
            " ".join(told.sentence for told in document.told if set(told.facts) <= main_facts(document.text))
            for document in train
        ]
        copier = statistics.mean(score(document.text, copy) for document, copy in zip(train, copies, strict=True))
        assert reference - 0.05 < copier < reference + 0.15

    def test_prefix_and_suffix_of_a_prompt_and_chat_messages_do_not_matter(self):
        scorer = SummaryScorer()
        prompts = [POST, f"Article:\n\n{POST}\n\nTL;DR:", [{"role": "user", "content": POST}]]
        assert len(set(scorer(prompts, ["Anna got a new car."] * 3, id=[1, 2, 3]))) == 1

    def test_noise_is_gaussian_and_belongs_to_the_record(self):
        summaries = ["Anna got a new car." + " " * n for n in range(400)]
        noisy = SummaryScorer(noise=0.3, seed=1)
        scores = noisy([POST] * 400, summaries)
        assert noisy([POST] * 400, summaries[::-1])[::-1] == scores
        assert SummaryScorer(noise=0.3, seed=2)([POST] * 400, summaries) != scores
        assert statistics.mean(scores) == pytest.approx(SummaryScorer().score(POST, summaries[0]), abs=0.05)
        assert statistics.stdev(scores) == pytest.approx(0.3, abs=0.04)

    @pytest.mark.parametrize("name", ["noise", "token_cost", "coverage_weight"])
    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_senseless_numbers_are_refused(self, name, value):
        with pytest.raises(ValueError, match=rf"{name}={value} must be a finite number of at least 0"):
            SummaryScorer(**{name: value})

    def test_lists_of_different_lengths_are_refused(self):
        with pytest.raises(ValueError, match="zip"):
            SummaryScorer()([POST], ["a", "b"])

    def test_serves_as_a_labeller(self):
        candidates = [" Anna got a new boat.", " Anna got a new car. Anna lives in Rome now.", " Ben lost a ring."]
        assert ScoreLabeler(SummaryScorer()).label([POST], [candidates]) == [1]
