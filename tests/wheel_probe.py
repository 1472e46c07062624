"""Run by `tests/wheel.py` in a new environment that knows the installed wheel and not the checkout.

Arguments: the README, and the release of TRL that should be installed.
"""

import re
import sys
import time
import warnings
from pathlib import Path

LONGEST_IMPORT = 1.0  # CPU seconds that importing the package may take beyond what it imports of TRL


def seconds_to_import() -> float:
    """CPU seconds that `import trl_ziegler` takes once TRL's trainers are imported."""
    warnings.simplefilter("ignore")  # of TRL's experimental namespace
    import trl.experimental.ppo  # noqa: F401
    from trl import RewardTrainer, SFTTrainer  # noqa: F401

    start = time.process_time()
    import trl_ziegler  # noqa: F401

    return time.process_time() - start


def write_tiny_gpt2(folder: Path) -> None:
    """A two-layer GPT-2 with random weights and a tokenizer of the embedded world."""
    from transformers import AutoModelForCausalLM, GPT2Config

    from trl_ziegler.experiments.laptop import build_tokenizer, passages

    tokenizer = build_tokenizer(passages(200, seed=0))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Import in time, from the wheel, with its data files; then the README's script on a tiny model."""
    readme, release = sys.argv[1:]
    seconds = seconds_to_import()
    import trl

    import trl_ziegler

    package = Path(trl_ziegler.__file__).parent
    assert package.parent.name == "site-packages", package
    assert (package / "py.typed").is_file()
    assert trl.__version__ == release or trl.__version__.startswith(f"{release}."), trl.__version__
    assert seconds < LONGEST_IMPORT, f"`import trl_ziegler` took {seconds:.2f} s beyond TRL's"
    write_tiny_gpt2(Path("gpt2"))
    script = re.search(r"```python\n(.*?)```", Path(readme).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert script
    exec(compile(script[1], readme, "exec"), {})
    print(f"Wheel of {trl_ziegler.__version__} with TRL {trl.__version__}: import {seconds:.2f} s, README script ran")


if __name__ == "__main__":
    main()
