"""Batches of records of mixed K, in full."""

from trl_ziegler.preference_collator import DataCollatorForBestOfK, count_tokens


class TestCollator:
    def test_mixed_k_padded_in_full(self):
        batch = DataCollatorForBestOfK(pad_token_id=9)(
            [
                {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6]], "label": 2, "margin": 1},
                {"prompt_ids": [], "completion_ids": [[8], [9]], "label": 0, "margin": 0.5},
            ]
        )
        expected = {
            "candidate_mask": [[True, True, True], [True, True, False]],
            "input_ids": [[1, 2, 3, 9], [1, 2, 4, 5], [1, 2, 6, 9], [8, 9, 9, 9], [9, 9, 9, 9]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
            "labels": [2, 0],
            "margin": [1.0, 0.5],
        }
        assert {key: value.tolist() for key, value in batch.items()} == expected
        assert next(iter(batch)) == "candidate_mask"  # Trainer takes the batch size from the first entry

    def test_rankings_and_scores_are_filled_up(self):
        rows = [
            {"prompt_ids": [1], "completion_ids": [[2], [3], [4]], "ranking": [2, 0, 1], "scores": [1, 2, 3]},
            {"prompt_ids": [1], "completion_ids": [[2], [3]], "ranking": [1, 0], "scores": [0.5, 0.25]},
        ]
        batch = DataCollatorForBestOfK()(rows)
        assert batch["rankings"].tolist() == [[2, 0, 1], [1, 0, 0]]
        assert batch["scores"].tolist() == [[1.0, 2.0, 3.0], [0.5, 0.25, 0.0]]

    def test_width_is_rounded_up(self):
        row = {"prompt_ids": [1], "completion_ids": [[2], [3, 4]], "label": 0}
        assert DataCollatorForBestOfK(pad_to_multiple_of=8)([row])["input_ids"].shape == (2, 8)
        assert DataCollatorForBestOfK(pad_to_multiple_of=3)([row])["input_ids"].shape == (2, 3)

    def test_a_shared_prefix_packed_in_full(self):
        rows = [
            {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6]], "label": 2},
            {"prompt_ids": [], "completion_ids": [[8], [9]], "label": 0},
        ]
        batch = DataCollatorForBestOfK(pad_token_id=7, shared_prefix=True, pad_to_multiple_of=4)(rows)
        expected = {
            "candidate_mask": [[True, True, True], [True, True, False]],
            "input_ids": [[1, 2, 3, 4, 5, 6, 7, 7], [8, 9, 7, 7, 7, 7, 7, 7]],
            "segment_ids": [[0, 0, 1, 2, 2, 3, -1, -1], [1, 2, -1, -1, -1, -1, -1, -1]],
            "position_ids": [[0, 1, 2, 2, 3, 2, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
            "reward_positions": [[2, 4, 5], [0, 1, 0]],
            "labels": [2, 0],
        }
        assert {key: value.tolist() for key, value in batch.items()} == expected
        assert next(iter(batch)) == "candidate_mask"  # Trainer takes the batch size from the first entry

    def test_tokens_count_a_prompt_once_per_candidate(self):
        rows = [
            {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6]], "label": 2},
            {"prompt_ids": [], "completion_ids": [[8], [9]], "label": 0},
        ]
        for shared in (True, False):
            assert count_tokens(DataCollatorForBestOfK(shared_prefix=shared)(rows)) == 3 + 4 + 3 + 1 + 1
