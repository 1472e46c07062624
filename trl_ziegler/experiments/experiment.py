"""What every experiment is: a run directory, arguments whose sections are checked first, and stages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._files import found_model
from ..labelers import CollectingLabeler, Labeler
from ..online_schedule import CollectionSchedule
from ..ppo_config import UpdatePlan, ZieglerPPOConfig
from ..tasks import Task
from .arguments import RecipeArguments, section_config
from .labelling import make_labeler, open_store
from .pipeline import Stage

Arguments = TypeVar("Arguments", bound=RecipeArguments)


class Experiment(ABC, Generic[Arguments]):
    """The stages of one run.

    Args:
        name: One of `tasks`.
        args: The recipe's arguments.
        run_dir: The run directory.

    Raises:
        ValueError: an unknown task, or an unknown key in a section.
    """

    arguments: ClassVar[type[RecipeArguments]]
    tasks: ClassVar[tuple[str, ...]]
    configs: ClassVar[Mapping[str, type]]
    """The sections that are trainings, and the config class of each. An empty section of `optional` is none."""
    optional: ClassVar[tuple[str, ...]] = ()
    task: Task
    """Where responses end."""

    def __init__(self, name: str, args: Arguments, run_dir: Path) -> None:
        if name not in self.tasks:
            raise ValueError(f"The task '{name}' is unknown; this experiment has {', '.join(self.tasks)}.")
        self.name, self.args, self.run_dir = name, args, run_dir
        # Every section is checked before the first stage starts.
        for section in self.configs:
            if args.section(section) or section not in self.optional:
                self.trainer_config(section, run_dir)
        if args.mode == "online":
            collection_schedule(args, self.trainer_config("policy", run_dir))  # a bad one is refused here too
        if args.label_store is not None:
            open_store(args.label_store).close()  # and so is one that cannot be opened
        best_only = args.label_store is not None or args.mode == "online"
        if best_only and args.section("reward").get("loss_type") == "ranking":
            raise ValueError(
                "`loss_type` in the section 'reward' is 'ranking', but people (`label_store`) and online collection "
                "say only which candidate is best; use 'best_of_k' or 'pairwise'."
            )

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order, each with the settings its result depends on."""

    @property
    def people(self) -> tuple[str, ...]:
        """What the stage `label` depends on where people answer."""
        return () if self.args.label_store is None else ("label_store",)

    @property
    def online(self) -> tuple[str, ...]:
        """What the stage `policy` depends on, further to its own, where labels are collected online."""
        if self.args.mode != "online":
            return ()
        return (*(item.name for item in fields(self.args) if item.name.startswith("online_")), "reward")

    @abstractmethod
    def labeler(self) -> Labeler:
        """The simulated labeller."""

    def collecting_labeler(self) -> CollectingLabeler:
        """Who labels: people, or the simulated labeller."""
        return make_labeler(self.args, self.name, self.labeler)

    @property
    def _label_origin(self) -> str:
        if self.args.label_store is not None:
            return "people, on the labelling page"
        return f"a simulated labeller of the task {self.name}, {self.args.label_error_rate:.0%} of its labels slips"

    def settings(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a stage that reads these arguments depends on."""
        args = self.args.as_dict()
        return {"task_name": self.name, **{key: args[key] for key in keys}}

    def trainer_config(self, section: str, folder: Path) -> Any:
        """A section as its config, writing to `folder` with the run's seed."""
        args = self.args
        forced = {"output_dir": str(folder), "seed": args.seed, "report_to": args.report_to, "run_name": section}
        # The library pins memory by default, which warns at every loader of a machine without a GPU, and without
        # `use_cpu` leaves each of several processes to itself there.
        defaults = {
            "dataloader_pin_memory": torch.cuda.is_available(),
            "use_cpu": PartialState().device.type == "cpu",
        }
        if section == "reward":
            defaults["label_origin"] = self._label_origin
        values = {**defaults, **args.section(section)}
        return section_config(self.configs[section], section, values, **forced)


def collection_schedule(args: RecipeArguments, config: ZieglerPPOConfig) -> CollectionSchedule:
    """l(n) over the episodes that `config` makes of the run's queries."""
    plan = UpdatePlan.from_config(config, args.num_policy_queries)
    return CollectionSchedule(
        initial=args.online_initial_labels,
        total=args.num_labels,
        episodes=plan.updates * plan.batch_size,
        trainings=args.online_trainings,
        margin=args.online_margin,
    )


def load_model(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32, in evaluation mode, and its tokenizer."""
    with found_model(path, "model") as found:
        model = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(found)
