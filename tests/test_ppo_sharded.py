"""PPO in shards (FSDP 2): what two CPU processes do (tests/sharded_ppo.py), and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from launches import run_python, several_processes
from sharded_ppo import CASES

from trl_ziegler.ppo_checks import check_sharding

LIMIT = 400  # seconds; a process that waits for the other in vain ends after the 30 of `ddp_timeout`


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What the two processes say of the cases, which they work through in one launch."""
    folder = str(tmp_path_factory.mktemp("runs"))
    _, said = run_python(*several_processes(), "tests/sharded_ppo.py", folder, limit=LIMIT)
    return said


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("case", CASES)
def test_in_shards(output, case):
    """The docstrings of tests/sharded_ppo.py say what each case is."""
    errors = [line for line in output.splitlines() if line.startswith("[rank") and "Warning" not in line]
    assert output.count(f"{case}: as it should be") == 2, "\n".join(errors[-60:])


def fsdp(**given):
    settings = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "mixed_precision_policy": None}
    return SimpleNamespace(**{**settings, **given})


MODEL = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
MIXED = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.bfloat16), torch.nn.Linear(2, 1))


def test_shards_that_can_be_sampled_pass():
    check_sharding(MODEL, None, False)
    check_sharding(MIXED, None, False)
    check_sharding(MODEL, fsdp(), False)
    check_sharding(MIXED, fsdp(mixed_precision_policy=object()), False)  # accelerate makes all of it float32


@pytest.mark.parametrize(
    ("plugin", "deepspeed", "message"),
    [
        (fsdp(fsdp_version=1), False, r"`fsdp_version` is 1.*PPO needs 2, as in recipes/accelerate/fsdp\.yaml"),
        (fsdp(cpu_ram_efficient_loading=True), False, "`fsdp_cpu_ram_efficient_loading` is on.*set it to false"),
        (None, True, r"DeepSpeed is on.*launch with FSDP 2 \(recipes/accelerate/fsdp\.yaml\)"),
    ],
)
def test_other_launches_are_refused(plugin, deepspeed, message):
    with pytest.raises(ValueError, match=message):
        check_sharding(MODEL, plugin, deepspeed)


def test_a_policy_in_another_type_than_its_value_head_is_refused():
    with pytest.raises(ValueError, match=r"train parameters in bfloat16 and float32.*load the policy in float32"):
        check_sharding(MIXED, fsdp(), False)
