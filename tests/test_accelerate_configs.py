"""`recipes/accelerate/*.yaml` through accelerate's own loader and the checks of its launcher, without launching."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from sharded_ppo import FSDP

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def validated(name: str, *flags: str):
    """The arguments of the launcher after its checks, with what the file says filled in."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "recipes/reward.py"])
    return _validate_launch_command(args)[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file):
    config = load_config_from_file(str(file))
    known = vars(launch_command_parser().parse_args(["recipes/reward.py"]))
    for section in (config.fsdp_config, config.deepspeed_config):
        assert section.keys() <= known.keys()
    assert config.num_processes % config.num_machines == 0


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("ddp", "multi_gpu", 1, 8),
        ("fsdp", "use_fsdp", 1, 8),
        ("multi_node", "multi_gpu", 2, 16),
        ("two_cpu_processes", "multi_gpu", 1, 2),
        ("zero2", "use_deepspeed", 1, 8),
        ("zero3", "use_deepspeed", 1, 8),
    ],
)
def test_the_launcher_accepts_every_file(name, kind, machines, processes):
    args = validated(name)
    chosen = [flag for flag in ("multi_gpu", "use_fsdp", "use_deepspeed", "tpu", "cpu") if getattr(args, flag)]
    assert chosen == [kind]
    assert (args.num_machines, args.num_processes) == (machines, processes)


def test_every_file_is_launched_above():
    marks = test_the_launcher_accepts_every_file.pytestmark
    assert [case[0] for case in marks[0].args[1]] == [file.stem for file in FILES]


def test_machines_find_each_other():
    args = validated("multi_node", "--machine_rank", "1", "--main_process_port", "29587")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint == "10.0.0.1:29587"


def test_fsdp_is_set_up_as_written(monkeypatch):
    args = validated("fsdp", "--main_process_port", "29588")
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    assert {name: os.environ[name] for name in FSDP} == FSDP  # what the tests of PPO in shards are launched with
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and args.mixed_precision == "bf16"
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type) and not plugin.cpu_ram_efficient_loading
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_is_told_its_stage(stage):
    args = validated(f"zero{stage}", "--main_process_port", "29589")
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_of_a_file_names_it_and_a_recipe_that_exists(file):
    command = re.search(r"accelerate launch --config_file (\S+) .*?(recipes/\w+\.py)", file.read_text())
    assert ROOT / command[1] == file and (ROOT / command[2]).is_file()


def test_the_page_about_scaling_names_every_file():
    named = re.findall(r"`recipes/accelerate/(\w+)\.yaml`", (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"))
    assert sorted(set(named)) == [file.stem for file in FILES]


@pytest.mark.slow
def test_a_reward_model_in_shards_gives_the_rewards_and_gradients_of_a_whole_one():
    done = subprocess.run(
        [sys.executable, "tests/sharded_reward.py", "29551"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("equal") == 2, done.stderr[-3000:]
