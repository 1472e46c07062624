"""Copying figures and the copier's alarm against numbers worked out by hand."""

import time

import numpy as np
import pytest

from trl_ziegler.experiments.report_alarms import find_alarms
from trl_ziegler.metrics import Copying, copier_alarm
from trl_ziegler.metrics.copying import longest_common_run, split_sentences

SOURCE = "Well, I met a dog. The dog bit me!\nMy leg  hurt. I ran home."
# Lower-cased and with single spaces the sentences start at characters 0, 19, 35 and 48 of 59; there are 15 words:
# well i met a dog the dog bit me my leg hurt i ran home
SUMMARY = "the dog BIT me. My leg is broken."


@pytest.fixture
def metric(tmp_path):
    return Copying(cache_dir=str(tmp_path), keep_in_memory=True)


@pytest.fixture
def copy(metric):
    """The figures of one summary or of several, of `SOURCE` unless other sources are given."""

    def compute(*summaries, sources=None, **facts):
        return metric.compute(predictions=list(summaries), sources=sources or [SOURCE] * len(summaries), **facts)

    return compute


class TestSentences:
    @pytest.mark.parametrize(
        ("text", "sentences"),
        [
            ("One. Two? Three! Four", ["one.", "two?", "three!", "four"]),
            ("Wait... what?! Yes", ["wait...", "what?!", "yes"]),
            ("3.5 km to example.com", ["3.5 km to example.com"]),
            ('He said "stop." (She did.) \n\n ok', ['he said "stop."', "(she did.)", "ok"]),
            ("one\r\ntwo  three\tfour\n", ["one", "two three four"]),
            ("!!! ... - yes", ["- yes"]),
            ("?!", []),
            ("", []),
        ],
    )
    def test_rule(self, text, sentences):
        assert split_sentences(text) == sentences

    def test_a_long_row_of_marks_takes_linear_time(self):
        start = time.process_time()
        split_sentences("." * 100_000 + "x" + '"' * 100_000)
        assert time.process_time() - start < 10  # quadratic time would be minutes


class TestCopiedSentences:
    def test_share_and_place_by_hand(self, copy):
        result = copy(SUMMARY)
        assert (result["copied_share"], result["sentences"], result["n"]) == (0.5, 2, 1)
        assert result["copy_positions"] == [19 / 59]

    def test_share_is_of_all_sentences_not_a_mean_of_shares(self, copy):
        assert copy("I ran home.", "It hurt. I cried. I slept.")["copied_share"] == 1 / 4

    def test_first_of_several_places_counts(self, copy):
        assert copy("I ran.", sources=["We ran. I ran. I ran."])["copy_positions"] == [8 / 21]

    def test_a_summary_may_leave_out_the_end_mark_or_be_cut_off(self, copy):
        assert copy("I ran home", "The dog bit", "I ran home?!")["copied_share"] == 1.0

    @pytest.mark.parametrize("cut", ["The dog bit m", "ell, I met a dog.", "I met the dog.", "Well I met a dog."])
    def test_part_of_a_word_and_other_punctuation_are_no_copy(self, copy, cut):
        assert copy(cut)["copied_share"] == 0.0

    @pytest.mark.parametrize("source", ["He can't swim.", "I said he can’t swim."])
    def test_an_apostrophe_is_inside_its_word(self, copy, source):
        assert copy("He can.", sources=[source])["copied_share"] == 0.0
        assert copy("t swim.", sources=[source])["copied_share"] == 0.0
        assert copy("swim.", sources=[source])["copied_share"] == 1.0

    def test_a_later_occurrence_at_word_boundaries_is_found(self, copy):
        assert copy("He ran.", sources=["She ran and he ran."])["copy_positions"] == [12 / 19]

    def test_symbols_in_a_sentence_are_read_as_they_are(self, copy):
        assert copy("It cost $5 (a.b)*", sources=["It cost $5 (a.b)* then"])["copied_share"] == 1.0
        assert copy("It cost .5", sources=["It cost $5"])["copied_share"] == 0.0

    @pytest.mark.parametrize(
        ("summary", "share"),
        [
            ("Well, I met a dog. It bit.", 1.0),
            ("WELL,\nI met a dog", 1.0),
            ("... Well, I met a dog and it bit.", 1.0),
            ("Well, I met a dogfish.", 0.0),
            ("I ran home. Well, I met a dog.", 0.0),
            ("Well, I met", 0.0),
            ("", 0.0),
        ],
    )
    def test_beginning_with_the_first_sentence(self, copy, summary, share):
        assert copy(summary)["starts_with_first"] == share

    def test_share_that_begins_so_is_one_of_summaries(self, copy):
        assert copy("Well, I met a dog.", "It bit.", "It hurt.", "I ran.")["starts_with_first"] == 1 / 4


class TestWords:
    def test_longest_run_and_length_by_hand(self, copy):
        # "the dog bit me my leg" runs over the end of a sentence; punctuation is no word.
        result = copy(SUMMARY)
        assert (result["longest_run"], result["length"]) == (6, 8)

    def test_runs_and_lengths_are_means_over_summaries(self, copy):
        result = copy(SUMMARY, "a dog, my dog")
        assert (result["longest_run"], result["length"]) == ((6 + 2) / 2, (8 + 4) / 2)

    @pytest.mark.parametrize(
        ("first", "second", "run"),
        [
            ("a b c d", "x b c y", 2),
            ("a a a", "a a", 2),
            ("a b", "c", 0),
            ("", "a", 0),
            ("ab", "b ab", 1),
            ("b", "ab", 0),
        ],
    )
    def test_longest_common_run(self, first, second, run):
        assert longest_common_run(first.split(), second.split()) == run
        assert longest_common_run(second.split(), first.split()) == run

    def test_longest_common_run_equals_the_table_of_dynamic_programming(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            first, second = rng.integers(4, size=30), rng.integers(4, size=50)
            table = np.zeros((31, 51), dtype=int)
            for i, j in np.argwhere(first[:, None] == second[None]):  # in order of i, then of j
                table[i + 1, j + 1] = table[i, j] + 1
            assert longest_common_run([*map(str, first)], [*map(str, second)]) == table.max()

    def test_novel_ngrams_by_hand(self, copy):
        # New are "is" and "broken" of 8 words, and for each n the two n-grams that end with them, of 9 - n.
        assert copy(SUMMARY)["novel_ngrams"] == [2 / 8, 2 / 7, 2 / 6, 2 / 5, 2 / 4]

    def test_every_occurrence_of_an_ngram_counts_over_all_summaries(self, copy):
        # "so so dog" has two new words of three and two new pairs of two, "dog bit" none of two and none of one.
        result = copy("so so dog", "dog bit")
        assert result["novel_ngrams"] == [2 / 5, 2 / 3, 1 / 1, None, None]

    def test_case_and_apostrophes(self, copy):
        result = copy("don't DO that", sources=["Don't do it, dont."])
        assert result["novel_ngrams"][:2] == [1 / 3, 1 / 2]

    def test_copy_of_the_whole_source_has_nothing_new(self, copy):
        result = copy(SOURCE)
        assert result["novel_ngrams"] == [0.0] * 5
        assert (result["copied_share"], result["longest_run"], result["starts_with_first"]) == (1.0, 15, 1.0)
        assert result["copy_positions"] == [0, 19 / 59, 35 / 59, 48 / 59]


class TestFacts:
    def test_invented_share_is_of_all_stated_facts(self, copy):
        result = copy(
            "a", "b", "c",
            stated_facts=[{1, 2, 3}, {4}, set()],
            true_facts=[{1, 9}, {4, 5}, {6}],
        )  # fmt: skip
        assert (result["invented_facts"], result["facts"]) == (2 / 4, 4)

    def test_a_function_reads_facts_from_summaries_and_from_sources(self, copy):
        def numbers(text):
            return [word for word in text.split() if word.isdigit()]

        texts = {"sources": ["3 or 5 of us"]}
        assert copy("3 of 4 and 4", **texts, stated_facts=numbers, true_facts=numbers)["invented_facts"] == 1 / 2
        assert copy("3 of 4", **texts, stated_facts=numbers, true_facts=[{"3", "4"}])["invented_facts"] == 0.0

    def test_nothing_stated_has_no_share_and_nothing_given_no_key(self, copy):
        assert copy("a", stated_facts=[[]], true_facts=[[1]])["invented_facts"] is None
        assert "invented_facts" not in copy("a")

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"stated_facts": [[1]]}, "`true_facts` is None"),
            ({"true_facts": [[1]]}, "`stated_facts` is None"),
            ({"stated_facts": [[1]], "true_facts": [[1], [2]]}, "`true_facts` has 2 entries for 1 summaries"),
        ],
    )
    def test_wrong_facts_are_named(self, copy, facts, message):
        with pytest.raises(ValueError, match=message):
            copy("a", **facts)


class TestInput:
    def test_empty_summaries_count_and_have_no_shares(self, copy):
        result = copy("", "?!")
        assert (result["n"], result["sentences"], result["length"], result["longest_run"]) == (2, 0, 0, 0)
        assert result["copied_share"] is None
        assert result["novel_ngrams"] == [None] * 5

    @pytest.mark.parametrize(
        ("summaries", "sources", "message"),
        [
            ([], [], "`predictions` is empty: copying needs at least one summary"),
            (["a", "b"], ["a", " ?"], r"sources\[1\] is ' \?': a source needs a letter or digit"),
            (["a", "b"], ["a"], "Mismatch in the number of"),
        ],
    )
    def test_wrong_input_is_named(self, metric, summaries, sources, message):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=summaries, sources=sources)

    def test_batches_add_up(self, metric, copy):
        metric.add_batch(predictions=[SUMMARY], sources=[SOURCE])
        metric.add_batch(predictions=["I ran."], sources=["I ran. He ran."])
        assert metric.compute() == copy(SUMMARY, "I ran.", sources=[SOURCE, "I ran. He ran."])

    def test_docstring_example(self, copy):
        assert copy("I ran. She left.", sources=["Well. I ran. We met."])["copied_share"] == 0.5


def history(copied, rouge):
    return [{"copied_share": c, "rouge_mean": r} for c, r in zip(copied, rouge, strict=True)]


class TestAlarm:
    def test_copying_over_the_threshold_while_rouge_falls(self):
        # Thirds: copied 0.2, 0.4, 0.7; ROUGE 0.25, 0.30, 0.22.
        sentence = copier_alarm(history([0.1, 0.3, 0.4, 0.4, 0.6, 0.8], [0.24, 0.26, 0.29, 0.31, 0.24, 0.20]))
        assert "rose from 0.40 to 0.70 (over 0.50" in sentence
        assert "fell from 0.300 to 0.220" in sentence

    @pytest.mark.parametrize(
        ("copied", "rouge"),
        [
            ([0.1, 0.3, 0.5], [0.30, 0.30, 0.20]),  # not over the threshold
            ([0.1, 0.4, 0.9], [0.20, 0.25, 0.26]),  # ROUGE rises
            ([0.1, 0.4, 0.9], [0.30, 0.30, 0.281]),  # falls by less than two points
            ([0.9, 0.8, 0.7], [0.30, 0.25, 0.20]),  # copied more when ROUGE was best
            ([0.1, 0.9], [0.3, 0.1]),  # too short to tell
            ([], []),
        ],
    )
    def test_healthy_histories_raise_none(self, copied, rouge):
        assert copier_alarm(history(copied, rouge)) is None

    def test_one_wild_evaluation_is_no_alarm(self):
        assert copier_alarm(history([0.3] * 8 + [0.9], [0.3] * 8 + [0.26])) is None

    def test_threshold_and_fall_can_be_set(self):
        rows = history([0.1, 0.2, 0.4], [0.30, 0.30, 0.27])
        assert copier_alarm(rows) is None
        assert "(over 0.30" in copier_alarm(rows, threshold=0.3)
        assert copier_alarm(rows, threshold=0.3, fall=0.04) is None

    def test_rows_without_both_numbers_are_passed_over(self):
        rows = history([0.1, 0.4, 0.9], [0.30, 0.30, 0.20])
        gaps = [{"copied_share": None, "rouge_mean": 0.9}, {"rouge_mean": 0.0}, {"episode": 5}]
        assert copier_alarm([*gaps, *rows, *gaps]) == copier_alarm(rows) is not None

    def test_reaches_the_report(self):
        rows = history([0.1, 0.4, 0.9], [0.30, 0.30, 0.20])
        (alarm,) = find_alarms(rows, {})
        assert (alarm.title, alarm.detail) == ("The policy copies its sources", copier_alarm(rows))
