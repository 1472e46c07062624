"""A recipe's arguments: flags over YAML over defaults, and sections checked against their stage's own config."""

import re
from functools import partial

import pytest
from transformers import TrainingArguments

from trl_ziegler.experiments.arguments import (
    RecipeArguments,
    StyleArguments,
    SummaryArguments,
    parse_recipe_arguments,
    section_config,
    section_task,
    split_section_flags,
)
from trl_ziegler.experiments.config_files import RecipeParser
from trl_ziegler.experiments.own_data import RewardScriptArguments
from trl_ziegler.tasks import BOOKS


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "laptop.yaml"
    path.write_text("num_labels: 12\ntask:\n  query_length: 16\npolicy:\n  learning_rate: 1e-3\n  kl_target: 2.0\n")
    return path


def test_flags_override_the_file_which_overrides_defaults(config):
    args, name = parse_recipe_arguments(
        StyleArguments, config, ["--seed", "7", "--policy.kl_target=3", "--policy.vf_coef", "0.2"]
    )
    assert name == "laptop"
    assert (args.num_labels, args.seed, args.num_candidates) == (12, 7, 4)
    assert args.policy == {"learning_rate": "1e-3", "kl_target": 3, "vf_coef": 0.2}
    assert args.task == {"query_length": 16}
    assert args.reward == {}


def test_another_config_replaces_the_default(config, tmp_path):
    other = tmp_path / "local.yaml"
    other.write_text("num_labels: 3\n")
    args, name = parse_recipe_arguments(StyleArguments, config, ["--config", str(other)])
    assert (args.num_labels, name, args.policy) == (3, "local", {})


def test_unknown_keys_are_named(config, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("num_lables: 3\n")
    with pytest.raises(ValueError, match="num_lables"):
        parse_recipe_arguments(StyleArguments, config, ["--config", str(bad)])
    message = r"Unknown key 'lerning_rate' in the section 'policy'; did you mean 'learning"
    with pytest.raises(ValueError, match=message):
        section_config(TrainingArguments, "policy", {"lerning_rate": 1})
    with pytest.raises(ValueError, match=r"Unknown key 'zzz' in the section 'task'\."):
        section_task(BOOKS, {"zzz": 1})
    with pytest.raises(ValueError, match=r"--policy\.lr needs a value"):
        split_section_flags(["--policy.lr"], ["policy"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "seed: 1\nseed: 2\n",
            "has `seed` in line 1 and again in line 2, which would replace the first; give it once.",
        ),
        ("policy:\n  a: 1\nseed: 1\npolicy:\n  b: 1\n", "has `policy` in line 1 and again in line 4"),
        ("policy:\n  kl_coef: 1\n  kl_coef: 2\n", "has `kl_coef` in line 2 and again in line 3"),
    ],
)
def test_keys_that_a_file_has_twice_are_named(tmp_path, text, sentence):
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"twice.yaml {sentence}")):
        parse_recipe_arguments(StyleArguments, tmp_path / "twice.yaml", [])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`config` is '.*none.yaml', which is no file; give the path of a YAML file"):
        parse_recipe_arguments(StyleArguments, tmp_path / "none.yaml", [])


def test_an_unquoted_no_is_a_strategy(tmp_path):
    """YAML reads it as false."""
    (tmp_path / "no.yaml").write_text("save_strategy: no\n")
    parser = RecipeParser(TrainingArguments)
    (config,) = parser.parse_args_and_config([f"--config={tmp_path / 'no.yaml'}", "--output_dir", str(tmp_path)])
    assert config.save_strategy == "no"
    section = split_section_flags(["--policy.save_strategy", "no"], ["policy"])[1]["policy"]
    assert section_config(TrainingArguments, "policy", section, output_dir=str(tmp_path)).save_strategy == "no"


def test_what_is_counted_is_whole(tmp_path):
    (tmp_path / "half.yaml").write_text("num_labels: 64.5\n")
    with pytest.raises(ValueError, match=r"`num_labels` is 64\.5; give a whole number"):
        parse_recipe_arguments(StyleArguments, tmp_path / "half.yaml", [])
    with pytest.raises(ValueError, match=r"`max_steps` is 0\.5; give a whole number"):
        section_config(TrainingArguments, "reward", {"max_steps": 0.5}, output_dir=str(tmp_path))
    (tmp_path / "half.yaml").write_text("num_labels: 64.0\n")
    args, _ = parse_recipe_arguments(StyleArguments, tmp_path / "half.yaml", [])
    assert type(args.num_labels) is int and args.num_labels == 64


@pytest.mark.parametrize("kind", [StyleArguments, SummaryArguments])
def test_what_a_configuration_leaves_to_the_command_line_must_be_given(config, kind):
    config.write_text("requires: [model, documents]\n")
    with pytest.raises(ValueError, match="`--model` and `--documents` must be given with this configuration"):
        parse_recipe_arguments(kind, config, [])
    parse_recipe_arguments(kind, config, ["--model", "x", "--documents", "y"])


def test_sections_become_their_config_with_types_converted(tmp_path):
    section = {"learning_rate": "1e-3", "max_grad_norm": 0, "save_strategy": "no"}
    config = section_config(TrainingArguments, "policy", section, output_dir=str(tmp_path), use_cpu=True)
    assert (config.learning_rate, config.max_grad_norm, config.output_dir) == (1e-3, 0, str(tmp_path))
    with pytest.raises(ValueError, match="Unknown key 'output_dir'"):
        section_config(TrainingArguments, "policy", {"output_dir": "x"}, output_dir=str(tmp_path))
    assert section_task(BOOKS, {"query_length": 32}).query_length == 32


def test_ordinary_flags_with_dots_in_their_values_are_left_alone():
    ordinary = ["--model", "some.folder/x", "--label_error_rate", "0.1"]
    flags, overrides = split_section_flags([*ordinary, "--task.penalty=-2"], ["task", "policy"])
    assert flags == ordinary
    assert overrides == {"task": {"penalty": -2}}


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="`num_candidates` is 1"):
        RecipeArguments(num_candidates=1)
    with pytest.raises(ValueError, match="`model` and `documents` go together"):
        RecipeArguments(model="x")


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (StyleArguments, {"num_labels": -3}, "`num_labels` is -3; give at least 1."),
        (StyleArguments, {"batch_size": 0}, "`batch_size` is 0; give at least 1."),
        (StyleArguments, {"cpu_threads": 0}, "`cpu_threads` is 0; give at least 1."),
        (StyleArguments, {"frontier_samples": 0}, "`frontier_samples` is 0; give at least 1."),
        (StyleArguments, {"num_eval_labels": 0}, "`num_eval_labels` is 0; give at least 1."),
        (StyleArguments, {"shared_trunk_labels": -1}, "`shared_trunk_labels` is -1; give at least 0."),
        (StyleArguments, {"label_error_rate": 5}, "`label_error_rate` is 5; give a share between 0 and 1."),
        (
            StyleArguments,
            {"reuse_from": "/none"},
            "`reuse_from` is '/none', which is no folder; give the one of other runs",
        ),
        (SummaryArguments, {"num_curve_queries": 0}, "`num_curve_queries` is 0; give at least 1."),
        (SummaryArguments, {"few_shot_examples": -1}, "`few_shot_examples` is -1; give at least 0."),
        (partial(RewardScriptArguments, "x"), {"normalization_samples": -1}, "`normalization_samples` is -1; give at"),
    ],
)
def test_impossible_counts_are_refused_before_anything_is_trained(kind, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**changes)
