"""The store's exchange formats: what goes out comes back, twice changes nothing, and wrong files are named."""

import json

import pytest
from datasets import Dataset
from label_records import answer_all, records

from trl_ziegler.labelers.human import (
    comparison_id,
    export_dataset,
    export_jsonl,
    export_openai,
    import_dataset,
    import_jsonl,
    import_openai,
)
from trl_ziegler.openai_labels import load_openai_labels
from trl_ziegler.preference_data import prepare_preferences

pytest_plugins = "label_fixtures"

REPLIES = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
HOSTILE = 'NUL \0, "quotes", emoji 👩‍🚀, separators \u2028\u2029\x85\n'


@pytest.fixture
def eventful(store, clock):
    """A store in which everything has happened: a retraction, a skip, flags kept, dropped and undecided."""
    store.add([*records(3, seed=3), {"prompt": HOSTILE, "completions": ["a", "b"], "task": "t", "step": 4}], repeats=2)
    store.add([{"prompt": "alone", "completions": [HOSTILE, "c" * 2**20], "nested": {"x": [1, None]}}], repeats=1)
    for name in ("ann", "bob"):
        store.add_labeller(name)

    def act(name, kind, value):
        clock.turn(seconds=1.5)
        work = store.take(name)
        if kind == "label":
            return store.answer(name, work.comparison.id, label=value, seconds=1.25)
        return getattr(store, kind)(name, work.comparison.id, value, seconds=3)

    act("ann", "label", 3)
    store.retract("ann")
    act("ann", "label", 2)
    kept = act("ann", "flag", HOSTILE)
    dropped = act("ann", "flag", "empty")
    store.decide(kept.id, keep=False, author="r", reason="right")
    clock.turn(seconds=1)
    store.decide(kept.id, keep=True, author="r", reason="wrong")
    store.decide(dropped.id, keep=False, author="r", reason="right")
    act("bob", "skip", "unsure")
    act("bob", "label", 1)
    act("bob", "flag", "undecided")
    act("bob", "label", 0)
    return store


def everything(store, path) -> list[dict]:
    """All that JSON lines hold, but when a comparison came into this store."""
    export_jsonl(store, path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [{name: value for name, value in row.items() if name != "created_at"} for row in rows]


class TestJsonLines:
    def test_round_trip(self, eventful, second_store, tmp_path, clock):
        rows = everything(eventful, tmp_path / "first.jsonl")
        clock.turn(days=1)
        assert import_jsonl(second_store, tmp_path / "first.jsonl") == (5, 8)
        assert everything(second_store, tmp_path / "second.jsonl") == rows
        assert second_store.counts() == eventful.counts()
        assert second_store.majority() == eventful.majority()
        assert second_store.progress() == eventful.progress()
        assert second_store.flags()[0].reason == "undecided"

    def test_importing_twice_adds_nothing(self, eventful, second_store, tmp_path):
        rows = everything(eventful, tmp_path / "first.jsonl")
        import_jsonl(second_store, tmp_path / "first.jsonl")
        for store in (second_store, eventful):
            assert import_jsonl(store, tmp_path / "first.jsonl") == (0, 0)
            assert everything(store, tmp_path / "again.jsonl") == rows

    def test_what_happened_since_is_added(self, eventful, second_store, tmp_path, clock):
        everything(eventful, tmp_path / "first.jsonl")
        import_jsonl(second_store, tmp_path / "first.jsonl")
        clock.turn(seconds=1)
        answered = eventful.retract("bob").comparison.id
        clock.turn(seconds=1)
        eventful.answer("bob", answered, label=1, seconds=1)
        (flag,) = eventful.flags()
        eventful.decide(flag.id, keep=True, author="r", reason="fine")
        rows = everything(eventful, tmp_path / "later.jsonl")
        assert import_jsonl(second_store, tmp_path / "later.jsonl") == (0, 1)
        assert everything(second_store, tmp_path / "second.jsonl") == rows

    def test_work_goes_on_where_it_was(self, eventful, second_store, tmp_path):
        everything(eventful, tmp_path / "first.jsonl")
        import_jsonl(second_store, tmp_path / "first.jsonl")
        second_store.add_labeller("cyd")
        assert answer_all(second_store, "cyd") == [eventful.comparisons()[i].id for i in (0, 1)]
        assert second_store.authenticate(second_store.replace_token("ann")) == "ann"

    def test_a_line_is_readable_by_hand(self, eventful, tmp_path):
        first = everything(eventful, tmp_path / "first.jsonl")[0]
        assert first.pop("id") == comparison_id("Prompt 0", first["completions"])
        answers = first.pop("answers")
        assert first == {
            "prompt": "Prompt 0", "completions": [f" answer 0.{i}" for i in range(4)], "label": 2,
            "source": None, "step": None, "task": None, "seed": 3, "repeats": 2,
        }  # fmt: skip
        assert answers[0] == {
            "labeller": "ann", "kind": "label", "label": 3, "reason": None, "seconds": 1.25, "decisions": [],
            "created_at": "2019-09-18T12:00:01.500005+00:00", "retracted_at": "2019-09-18T12:00:01.500005+00:00",
        }  # fmt: skip
        assert [answer["kind"] for answer in answers] == ["label", "label", "skip"]
        assert (tmp_path / "first.jsonl").read_bytes().isascii()

    def test_one_task_at_a_time(self, eventful, tmp_path):
        export_jsonl(eventful, tmp_path / "t.jsonl", task="t")
        (line,) = (tmp_path / "t.jsonl").read_text().splitlines()
        assert json.loads(line)["prompt"] == HOSTILE

    def test_an_answer_against_the_labellers_own_is_refused_as_a_whole(self, second_store, store, tmp_path):
        for side, label in ((store, 0), (second_store, 1)):
            side.add(records(2), repeats=1)
            side.add_labeller("ann")
            answer_all(side, "ann", label)
        export_jsonl(store, tmp_path / "labels.jsonl")
        with pytest.raises(
            ValueError, match=r"labeller='ann' says label 0 on comparison \w+, but label 1 in the store"
        ):
            import_jsonl(second_store, tmp_path / "labels.jsonl")
        assert set(second_store.majority().values()) == {1} and second_store.counts().labels == 2

    def test_two_answers_of_one_labeller_in_a_file_must_say_the_same(self, second_store, tmp_path):
        path = tmp_path / "labels.jsonl"

        def write(*labels):
            answers = [
                {"labeller": "ann", "kind": "label", "label": label, "created_at": f"2020-01-0{i + 1}T00:00Z"}
                for i, label in enumerate(labels)
            ]
            path.write_text(json.dumps({"prompt": "p", "completions": ["a", "b"], "answers": answers}))

        write(1, 0)
        with pytest.raises(ValueError, match=r"says label 0 on comparison \w+, but label 1 in the store"):
            import_jsonl(second_store, path)
        write(1, 1)
        assert import_jsonl(second_store, path) == (1, 1)

    def test_time_decides_and_not_the_order_of_arrival(self, store, second_store, tmp_path, clock):
        """Which of equals was first, and what a labeller said last."""
        x, y = records(2)
        for side, comparisons in ((store, [x]), (second_store, [y, x])):
            side.add(comparisons, repeats=2)
            side.add_labeller("ann")
        (x_id,) = answer_all(store, "ann", 3)
        clock.turn(seconds=1)
        second_store.add_labeller("cyd")
        answer_all(second_store, "cyd", 1)
        y_id = second_store.take("ann").comparison.id
        second_store.answer("ann", y_id, label=1, seconds=1)
        export_jsonl(store, tmp_path / "older.jsonl")
        import_jsonl(second_store, tmp_path / "older.jsonl")
        assert second_store.majority() == {y_id: 1, x_id: 3}
        assert second_store.retract("ann").comparison.id == y_id

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"prompt": "another"}, r"line 2: `id` does not fit the content"),
            ({"completions": ["a"]}, "line 2: `completions` is"),
            (
                {"answers": [{"labeller": "ann"}]},
                "line 2: an answer is .* it needs `labeller`, `kind` and `created_at`",
            ),
            ({"answers": [{"kind": "label", "label": 4}]}, "line 2: label=4 points at no completion"),
            ({"answers": [{"kind": "skip"}]}, "line 2: reason=None says nothing; give the reason of a skip"),
            ({"answers": [{"kind": "guess"}]}, "line 2: kind='guess' is unknown; it is 'label', 'skip' or 'flag'"),
            ({"answers": [{"label": 0, "seconds": -1}]}, "line 2: seconds=-1 is no duration"),
            ({"answers": [{"label": 0, "labeller": " "}]}, "line 2: labeller=' ' is no name"),
            ({"answers": [{"label": 0, "created_at": "2019-09-18T12:00:01"}]}, "has no time zone; append"),
            ({"answers": [{"label": 0, "created_at": "yesterday"}]}, "created_at='yesterday' is no time"),
            ({"answers": [{"label": 0, "retracted_at": 5}]}, "retracted_at=5 is no time"),
            ({"answers": [{"label": 0, "decisions": [{"author": "r", "reason": "x"}]}]}, "keep=None is no decision"),
        ],
    )
    def test_a_wrong_line_is_named_and_nothing_is_added(self, second_store, tmp_path, changes, message):
        good = {"id": comparison_id("p", ["a", "b"]), "prompt": "p", "completions": ["a", "b"], "answers": []}
        whole = {"labeller": "ann", "kind": "label", "created_at": "2019-09-18T12:00:01+00:00"}
        bad = {**good, **changes}
        if changes.get("answers") not in (None, [{"labeller": "ann"}]):
            bad["answers"] = [{**whole, **answer} for answer in changes["answers"]]
        path = tmp_path / "labels.jsonl"
        path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
        with pytest.raises(ValueError, match=message):
            import_jsonl(second_store, path)
        assert second_store.comparisons() == [] and second_store.progress() == []

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"repeat": 5}, "line 1 has `repeat`, which looks like `repeats`; correct it, or give the column another"),
            ({"Task": "x"}, "line 1 has `Task`, which looks like `task`"),
            ({"completions": ["a", "b", "a"]}, "line 1: completions 0 and 2 are identical; a choice needs different"),
        ],
    )
    def test_slips_of_a_file_made_by_hand_are_named(self, second_store, tmp_path, columns, message):
        path = tmp_path / "labels.jsonl"
        path.write_text(json.dumps({"prompt": "p", "completions": ["a", "b"], **columns}))
        with pytest.raises(ValueError, match=message):
            import_jsonl(second_store, path)
        assert second_store.comparisons() == []

    def test_other_columns_stay_what_they_are(self, second_store, tmp_path):
        columns = {"post_id": 7, "completion_ids": [[1], [2]], "sources": ["x", "y"]}
        (tmp_path / "labels.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b"], **columns}))
        import_jsonl(second_store, tmp_path / "labels.jsonl")
        assert second_store.comparisons()[0].extra == columns

    def test_what_a_store_took_comes_back_into_another(self, store, second_store, tmp_path):
        store.add([{"prompt": "p", "completions": ["a", "b", "a"], "repeat": 5}])
        assert export_jsonl(store, tmp_path / "labels.jsonl") == (1, 0)
        assert import_jsonl(second_store, tmp_path / "labels.jsonl") == (1, 0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"prompt": "p", "comple', r"line 1 is not complete JSON .* cut in half"),
            ("[1, 2]\n", "line 1 is no JSON object"),
            (
                '{"prompt": "p", "completions": ["a", "b"], "label": 0}\n',
                "has a `label` from nobody; load the file and",
            ),
        ],
    )
    def test_a_file_of_another_kind_is_named(self, second_store, tmp_path, text, message):
        (tmp_path / "labels.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            import_jsonl(second_store, tmp_path / "labels.jsonl")


class TestDataset:
    def test_round_trip(self, eventful, second_store):
        dataset = export_dataset(eventful)
        assert import_dataset(second_store, dataset, labeller="majority") == (3, 3)
        assert export_dataset(second_store).to_dict() == dataset.to_dict()
        assert import_dataset(second_store, dataset, labeller="majority") == (0, 0)

    def test_is_what_the_reward_trainer_takes(self, eventful, tokenizer):
        dataset = export_dataset(eventful, task=None).select([0])
        assert dataset[0]["completions"][dataset[0]["label"]] == " answer 0.2"
        prepared = prepare_preferences(dataset, tokenizer)
        assert prepared[0]["label"] == 2 and len(prepared[0]["completion_ids"]) == 4

    def test_chat_and_columns_that_only_some_have(self, store, second_store):
        chat = [{"role": "user", "content": "Hello"}]
        replies = [[{"role": "assistant", "content": text}] for text in ("Hi.", HOSTILE)]
        store.add([{"prompt": chat, "completions": replies, "post": 7}, {"prompt": chat * 2, "completions": replies}])
        store.add_labeller("ann")
        answer_all(store, "ann", 1)
        dataset = export_dataset(store)
        assert dataset["post"][:] == [7, None]
        import_dataset(second_store, dataset, labeller="ann")
        assert [c.id for c in second_store.comparisons()] == [c.id for c in store.comparisons()]
        assert [c.extra for c in second_store.comparisons()] == [{"post": 7}, {}]

    def test_without_labels_it_is_work(self, store):
        dataset = Dataset.from_list(records(3))
        assert import_dataset(store, dataset, repeats=2) == (3, 0)
        assert store.counts().remaining == 6

    def test_a_comparison_that_comes_again_was_labelled_by_somebody_else(self, store):
        rows = [{**records(1)[0], "label": label} for label in (1, 2, 2)]
        assert import_dataset(store, Dataset.from_list(rows), labeller="crowd") == (1, 3)
        assert store.ratings()["references"] == [["crowd", "crowd-2", "crowd-3"]]
        assert list(store.majority().values()) == [2]

    @pytest.mark.parametrize(
        ("change", "labeller", "message"),
        [
            ({"label": 4}, "ann", "Record 1: label=4 points at no completion; with 4 of them it is in 0..3"),
            ({"label": 0}, None, "labeller=None, but the dataset has a `label`; say whose labels these are"),
            ({"label": 0}, "", "labeller='' is no name"),
            ({"prompt": "", "label": 0}, "ann", "Record 1: `prompt` is ''"),
        ],
    )
    def test_wrong_records_are_named(self, second_store, change, labeller, message):
        good, bad = ({**record, "label": 1} for record in records(2))
        with pytest.raises(ValueError, match=message):
            import_dataset(second_store, Dataset.from_list([good, {**bad, **change}]), labeller=labeller)
        assert second_store.comparisons() == []

    def test_nothing_to_export_and_mixed_columns_are_named(self, second_store):
        second_store.add([*records(1), {"prompt": [{"role": "user", "content": "x"}], "completions": REPLIES}])
        with pytest.raises(ValueError, match="no labelled comparison of task='tldr'; wait for the first label"):
            export_dataset(second_store, task="tldr")
        second_store.add_labeller("ann")
        answer_all(second_store, "ann")
        with pytest.raises(ValueError, match=r"do not have one type per column .* export one `task` at a time"):
            export_dataset(second_store)


class TestOpenAI:
    WIDTHS = {"query_length": 8, "response_length": 6}  # noqa: RUF012

    @pytest.fixture
    def file(self, tmp_path, tokenizer):
        path = tmp_path / "labels.json"
        spelled = tokenizer.convert_tokens_to_ids(["Ġ", "c", "a", "t"])  # reads " cat", for which there is one id
        samples = [{f"sample{k}": [50 + k, 60 + i, 61, 13][: 2 + k] for k in range(3)} for i in range(4)]
        rows = [{"query": [i, *spelled], **samples[i], "best": i % 3} for i in range(4)]
        for row in rows:
            for name, width in (("query", 8), ("sample0", 6), ("sample1", 6), ("sample2", 6)):
                row[name] += [50259] * (width - len(row[name]))
        path.write_text(json.dumps(rows))
        return path

    def test_round_trip_token_by_token(self, store, file, tokenizer, tmp_path):
        result = import_openai(store, file, processing_class=tokenizer, labeller="openai", task="descriptiveness")
        assert result == (4, 4)
        export_openai(store, tmp_path / "again.json", processing_class=tokenizer, **self.WIDTHS)
        assert json.loads((tmp_path / "again.json").read_text()) == json.loads(file.read_text())
        again = import_openai(store, file, processing_class=tokenizer, labeller="openai", task="descriptiveness")
        assert again == (0, 0)

    def test_people_see_the_decoded_texts(self, second_store, file, tokenizer):
        import_openai(second_store, file, processing_class=tokenizer, labeller="openai", task="descriptiveness")
        first = second_store.comparisons()[0]
        assert first.prompt == tokenizer.decode([0]) + " cat"
        assert first.completions[1] == tokenizer.decode([51, 60, 61])
        assert first.task == "descriptiveness"

    def test_texts_are_tokenised_on_the_way_out(self, second_store, tokenizer, tmp_path):
        second_store.add([{"prompt": "The cat", "completions": [" saw.", " was it."]}], repeats=1)
        second_store.add_labeller("ann")
        answer_all(second_store, "ann", 1)
        widths = {"query_length": 10, "response_length": 10}
        export_openai(second_store, tmp_path / "labels.json.gz", processing_class=tokenizer, **widths)
        (row,) = load_openai_labels(tmp_path / "labels.json.gz")
        assert [tokenizer.decode(ids) for ids in [row["prompt_ids"], *row["completion_ids"]]] == [
            "The cat", " saw.", " was it.",
        ]  # fmt: skip
        assert row["label"] == 1

    def test_what_does_not_fit_is_named(self, second_store, tokenizer, tmp_path):
        with pytest.raises(ValueError, match="The store holds no labelled comparison to write"):
            export_openai(second_store, tmp_path / "x.json", processing_class=tokenizer, **self.WIDTHS)
        second_store.add(records(1), repeats=1)
        second_store.add_labeller("ann")
        answer_all(second_store, "ann", 1)
        with pytest.raises(ValueError, match=r"Record 0: completion 0 has \d+ tokens, more than the width 6"):
            export_openai(
                second_store, tmp_path / "x.json", processing_class=tokenizer, query_length=64, response_length=6
            )
