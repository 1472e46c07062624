"""A reward model in shards (FSDP 2) over two CPU processes gives the rewards and gradients of a whole one.

accelerate shards on accelerators only, so this calls torch's `fully_shard` as accelerate does: on every block, then on
the whole model. Run: python tests/sharded_reward.py PORT
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, GPT2Config

from trl_ziegler.functional import best_of_k_loss
from trl_ziegler.preference_collator import DataCollatorForBestOfK, candidate_rewards
from trl_ziegler.reward_model import as_reward_model

RECORDS = [
    {"prompt_ids": [5, 6, 7], "completion_ids": [[1], [2, 3], [4, 5, 6]], "label": 1},
    {"prompt_ids": [8, 9], "completion_ids": [[7, 8], [3]], "label": 0},
]


def reward_model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=1, bos_token_id=0, eos_token_id=0
    )
    return as_reward_model(AutoModelForSequenceClassification.from_config(config), fresh_head=True).eval()


def gradients(model, shared_prefix: bool) -> dict[str, torch.Tensor]:
    """Those of a best-of-K loss, and the rewards as `rewards`."""
    batch = DataCollatorForBestOfK(shared_prefix=shared_prefix)(RECORDS)
    rewards = candidate_rewards(model, batch)
    best_of_k_loss(rewards, batch["labels"], mask=batch["candidate_mask"]).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"rewards": rewards.detach(), **found}


def work(rank: int, port: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for shared_prefix in (False, True):
        model = reward_model()
        expected = gradients(model, shared_prefix)
        mesh = init_device_mesh("cpu", (2,))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        found = gradients(fully_shard(model, mesh=mesh), shared_prefix)
        assert found.keys() == expected.keys() and len(found) > 20
        for name, tensor in found.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            torch.testing.assert_close(whole, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    dist.destroy_process_group()
    print(f"process {rank}: equal")


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
