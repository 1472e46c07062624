"""What the tests of PPO build their jobs from."""

from datasets import Dataset
from ppo_runs import PROMPTS


def prompts(n: int = 12) -> Dataset:
    """`n` prompts of different lengths, with a column `number` that tells them apart."""
    return Dataset.from_dict({"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(n)], "number": list(range(n))})


def favour(model, token_id: int, by: float = 20.0):
    """`model` with `by` added to the logit of `token_id` (20 makes it practically certain)."""

    def add(module, inputs, logits):
        logits = logits.clone()
        logits[..., token_id] += by
        return logits

    model.get_output_embeddings().register_forward_hook(add)
    return model
