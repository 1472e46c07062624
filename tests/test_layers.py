"""Imports run one way: each module has a layer, and each layer a list of the layers it may know.

recipes -> experiments -> online -> trainers -> parts -> base. Labellers and metrics know no trainer, trainers know no
labeller, and only recipes know the experiments. A new module fails here until it has a place in `LAYERS`.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "trl_ziegler"

LAYERS = {
    "base": {
        "_compat",
        "_files",
        "_logs",
        "_version",
        "chunked_softmax",
        "functional",
        "fast_layers",
        "kl_control",
        "kv_cache",
        "optim",
        "prefix_sharing",
        "presets",
        "ranges",
        "sharding",
        "tasks",
    },
    "parts": {
        "actor_critic",
        "compiled_sampling",
        "openai_labels",
        "preference_checks",
        "preference_collator",
        "preference_data",
        "preference_losses",
        "reward_checks",
        "reward_mixin",
        "reward_model",
        "reward_wrapper",
        "sampling",
    },
    "labelers": {"label", "labelers"},
    "metrics": {"metrics"},
    "trainers": {
        "checkpoints",
        "model_cards",
        "ppo_checkpoints",
        "ppo_checks",
        "ppo_config",
        "ppo_evaluation",
        "ppo_loop",
        "ppo_models",
        "ppo_passes",
        "ppo_sharding",
        "ppo_statistics",
        "ppo_trainer",
        "pretraining_data",
        "queries",
        "reward_trainer",
        "rollout",
    },
    "online": {"online", "online_candidates", "online_files", "online_schedule"},
    "experiments": {"experiments"},
    "flat names": {"__init__"},
    "recipes": {"recipes"},
}

MAY_IMPORT = {
    "base": {"base"},
    "parts": {"parts", "base"},
    "labelers": {"labelers", "metrics", "parts", "base"},
    "metrics": {"metrics", "parts", "base"},
    "trainers": {"trainers", "metrics", "parts", "base"},
    "online": {"online", "trainers", "labelers", "metrics", "parts", "base"},
    "experiments": {"experiments", "online", "trainers", "labelers", "metrics", "parts", "base", "flat names"},
    "flat names": {"online", "trainers", "labelers", "metrics", "parts", "base"},
    "recipes": set(LAYERS),
}


def layer_of(module: str) -> str:
    """The layer of a dotted module name; `trl_ziegler` alone holds the flat list of public names."""
    top = "recipes" if module.startswith("recipes") else (module.split(".")[1:2] or ["__init__"])[0]
    for layer, members in LAYERS.items():
        if top in members:
            return layer
    raise AssertionError(f"{module} has no layer: give `{top}` a place in the LAYERS table of tests/test_layers.py.")


def is_module(name: str) -> bool:
    """Whether a dotted name is a file or folder of the package, not something defined in one."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(module: str, source: str, is_package: bool = False) -> Iterator[str]:
    """The dotted names that the source of `module` imports, relative ones resolved."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level + 1], node.module or ""]) if node.level else node.module
            base = (base or "").rstrip(".")
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if is_module(name) else base for name in submodules)


def own_imports(module: str, source: str, is_package: bool = False) -> set[str]:
    """Those of `imports` that stay inside the package."""
    return {name for name in imports(module, source, is_package) if name.split(".")[0] == PACKAGE}


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """One sentence for every import of `module` that runs against the layers."""
    layer = layer_of(module)
    return [
        f"{module} ({layer}) may not import {name} ({layer_of(name)})"
        for name in sorted(own_imports(module, source, is_package))
        if layer_of(name) not in MAY_IMPORT[layer]
    ]


def project_modules() -> Iterator[tuple[str, str, bool]]:
    """Dotted name, source and whether it is an `__init__.py`, for every file of the package and the recipes."""
    for path in sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if is_package else parts), path.read_text(encoding="utf-8"), is_package


def test_every_import_follows_the_layers():
    assert [sentence for module in project_modules() for sentence in violations(*module)] == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for module, source, is_package in project_modules():
        if module != PACKAGE:
            graph[module] = own_imports(module, source, is_package) - {module, PACKAGE}
    TopologicalSorter(graph).prepare()


def test_only_one_file_imports_the_experimental_namespace_of_trl():
    importers = {
        module
        for module, source, is_package in project_modules()
        for name in imports(module, source, is_package)
        if name.startswith("trl.experimental")
    }
    assert importers == {"trl_ziegler._compat"}


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("trl_ziegler.functional", "from .ppo_trainer import X", "trl_ziegler.ppo_trainer"),
        ("trl_ziegler.functional", "from . import sampling", "trl_ziegler.sampling"),
        ("trl_ziegler.sampling", "import trl_ziegler.rollout as r", "trl_ziegler.rollout"),
        ("trl_ziegler.ppo_trainer", "from .labelers.score import ScoreLabeler", "trl_ziegler.labelers.score"),
        ("trl_ziegler.ppo_trainer", "from .online import X", "trl_ziegler.online"),
        ("trl_ziegler.labelers.score", "from ..reward_trainer import X", "trl_ziegler.reward_trainer"),
        ("trl_ziegler.metrics.frontier", "def f():\n    from ..rollout import X", "trl_ziegler.rollout"),
        ("trl_ziegler.online", "from trl_ziegler.experiments import data", "trl_ziegler.experiments.data"),
        ("trl_ziegler.rollout", "from trl_ziegler import ZieglerPPOTrainer", "trl_ziegler"),
    ],
)
def test_an_import_against_the_layers_is_named(module, source, imported):
    (sentence,) = violations(module, source)
    assert sentence.startswith(f"{module} (") and f"may not import {imported} (" in sentence


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trl_ziegler.reward_trainer", "import torch\nfrom .functional import x\nfrom .metrics import y"),
        ("trl_ziegler.labelers.score", "from ..reward_model import score\nfrom .protocol import Labeler"),
        ("trl_ziegler.experiments.pipeline", "from ..online import x\nfrom . import data\nimport trl_ziegler"),
        ("recipes.sentiment", "from trl_ziegler.experiments.recipe import run"),
        ("trl_ziegler.rollout", "from trl.trainer.utils import RepeatSampler"),
    ],
)
def test_an_import_along_the_layers_passes(module, source):
    assert violations(module, source) == []


def test_the_flat_list_does_not_know_the_experiments():
    (sentence,) = violations("trl_ziegler", "from .experiments import data", is_package=True)
    assert "trl_ziegler (flat names) may not import trl_ziegler.experiments.data" in sentence


def test_a_new_module_is_sent_to_the_table():
    with pytest.raises(AssertionError, match="give `novelty` a place in the LAYERS table"):
        violations("trl_ziegler.novelty", "import torch")
