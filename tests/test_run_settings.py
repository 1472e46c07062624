"""What a run is recognised by: settings that its result depends on, and the content of models and data."""

import json

import pytest
from datasets import Dataset
from reward_records import records

from trl_ziegler import BestOfKRewardConfig, ZieglerPPOConfig
from trl_ziegler.experiments.run_settings import data_input, keep_settings, model_input, settings_of


def test_what_is_learned_counts_and_how_it_is_run_does_not(tmp_path):
    config = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    for cls, other in ((ZieglerPPOConfig, {"kl_coef": 0.3}), (BestOfKRewardConfig, {"loss_type": "scalar"})):
        same = cls(**config, max_steps=9, save_steps=3, logging_steps=7, eval_steps=2, shared_prefix=False)
        assert settings_of(same) == settings_of(cls(**config))
        for change in (other, {"learning_rate": 0.3}, {"seed": 8}, {"gradient_accumulation_steps": 2}):
            assert settings_of(cls(**config, **change)) != settings_of(cls(**config))


def test_a_model_is_known_by_its_content_wherever_it_lies(tmp_path, make_causal_lm):
    for name in ("a", "b"):
        make_causal_lm().save_pretrained(tmp_path / name)
        (tmp_path / name / "README.md").write_text(name)
    first, second = (model_input(str(tmp_path / name))["content"] for name in ("a", "b"))
    assert first == second
    (tmp_path / "b" / "model.safetensors").write_bytes(b"other weights")
    assert model_input(str(tmp_path / "b"))["content"] != first
    assert model_input("my_rewards:letter_e") == {"name": "my_rewards:letter_e", "content": "my_rewards:letter_e"}


def test_data_are_known_by_their_rows(tmp_path):
    rows = records(4)
    rows.save_to_disk(tmp_path / "saved")
    again = Dataset.load_from_disk(tmp_path / "saved").with_format("torch")
    assert data_input("a", again)["content"] == data_input("b", rows)["content"]
    assert data_input("a", records(4, seed=1))["content"] != data_input("a", rows)["content"]


def test_checkpoints_of_unknown_settings_are_taken_with_a_warning(tmp_path, caplog):
    args = BestOfKRewardConfig(str(tmp_path / "run"), use_cpu=True, report_to="none")
    keep_settings(args, "checkpoint-1", {}, {"dataset_name": data_input("a", records(2))})
    assert "run has checkpoints, but no settings.json" in caplog.text
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert kept["inputs"]["dataset_name"]["name"] == "a" and kept["settings"]["loss_type"] == "best_of_k"
    with pytest.raises(
        ValueError, match=r"`lora_r` was None and is 4; `dataset_name` was 'a' and is 'b'\. Give another"
    ):
        keep_settings(args, "checkpoint-1", {"lora_r": 4}, {"dataset_name": data_input("b", records(3))})
