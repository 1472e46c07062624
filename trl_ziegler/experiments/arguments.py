"""The arguments of a recipe: flat flags, plus one section per stage that is checked against that stage's own config.

`accelerate launch recipes/sentiment.py [--config FILE.yaml] [--flag value] [--section.key value]`
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from ..tasks import Task
from .config_files import RecipeParser, as_section, config_of, separate_config, split_section_flags

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Arguments = TypeVar("Arguments", bound="SectionedArguments")


@dataclass
class SectionedArguments:
    """Arguments of which some, named in `sections`, are mappings whose keys flags may set one by one."""

    sections: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.sections:
            setattr(self, name, as_section(name, getattr(self, name)))

    def section(self, name: str) -> dict[str, Any]:
        """A section's keys and values, read from whatever form it was given in."""
        return getattr(self, name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to `config.yaml`."""
        return asdict(self)


@dataclass
class RecipeArguments(SectionedArguments):
    """Settings of a whole run. Without `model` and `documents` everything comes from the embedded laptop world."""

    sections: ClassVar[tuple[str, ...]] = ("task", "world", "sft", "reward", "policy")
    counts: ClassVar[tuple[str, ...]] = (
        "num_labels", "num_policy_queries", "num_eval_queries", "num_normalization_samples", "batch_size",
        "cpu_threads", "num_eval_labels",
    )  # fmt: skip
    counts_from_zero: ClassVar[tuple[str, ...]] = ()

    output_dir: str | None = field(
        default=None, metadata={"help": "Run directory; default runs/<task>/<name of the config file>."}
    )
    seed: int = field(default=1, metadata={"help": "Seed of the run: data, initial weights, sampling."})
    stages: str | None = field(
        default=None, metadata={"help": "Comma-separated stages to run; default all. Finished ones are skipped."}
    )
    reuse_from: str | None = field(
        default=None,
        metadata={
            "help": "Folder of other runs: a stage that one of them has finished with the same settings is copied."
        },
    )
    requires: list[str] = field(
        default_factory=list,
        metadata={"help": "Arguments that a configuration file leaves to the command line, and is no run without."},
    )
    mode: Literal["best_of_k", "direct", "online"] = field(
        default="best_of_k",
        metadata={
            "help": "RL on a reward model trained from best-of-K labels, directly on the labeller's score, or "
            "online: on reward models from labels collected as PPO goes on, num_labels in all."
        },
    )
    model: str | None = field(
        default=None, metadata={"help": "Start model: folder or hub id of a causal language model."}
    )
    documents: str | None = field(
        default=None, metadata={"help": "Texts that queries are made of: file, saved dataset or hub id (id:config)."}
    )
    num_candidates: int = field(default=4, metadata={"help": "K, candidates per label."})
    num_labels: int = field(default=4992, metadata={"help": "Labels to train the reward model on."})
    num_eval_labels: int = field(default=512, metadata={"help": "Held-out labels for its accuracy."})
    label_error_rate: float = field(default=0.0, metadata={"help": "Share of labels replaced by a random other one."})
    label_store: str | None = field(
        default=None,
        metadata={
            "help": "People answer instead of the simulated labeller: their label store, an SQLite file or "
            "postgresql://user@host/database, which python -m trl_ziegler.label serves to them."
        },
    )
    label_poll_seconds: float = field(
        default=5.0, metadata={"help": "Pause between two looks into the label store while a run waits for people."}
    )
    online_initial_labels: int = field(default=500, metadata={"help": "Labels collected before PPO starts."})
    online_trainings: int = field(
        default=20, metadata={"help": "Reward trainings: one before PPO, the others at evenly spaced label counts."}
    )
    online_margin: int = field(
        default=1000, metadata={"help": "Labels that requests run ahead by; simulated labellers need none."}
    )
    online_validation_interval: int = field(
        default=10,
        metadata={"help": "Every how many-th query compares candidates of policy and start model; 0 for none."},
    )
    num_policy_queries: int = field(default=8192, metadata={"help": "Queries PPO draws from."})
    num_eval_queries: int = field(default=512, metadata={"help": "Held-out queries for win rate and samples."})
    num_normalization_samples: int = field(
        default=512, metadata={"help": "Responses of the start model that normalise the reward model."}
    )
    batch_size: int = field(default=256, metadata={"help": "Rows per forward pass in sampling and scoring."})
    cpu_threads: int | None = field(
        default=None, metadata={"help": "Threads of torch on a CPU; default all cores divided by the processes."}
    )
    report_to: str = field(
        default="none", metadata={"help": "Trackers, as in any HF script: none, tensorboard, wandb…"}
    )
    task: dict | str | None = field(
        default=None, metadata={"help": "Section: fields of Task that differ (--task.response_length 16)."}
    )
    world: dict | str | None = field(default=None, metadata={"help": "Section: sizes of the laptop world."})
    sft: dict | str | None = field(
        default=None, metadata={"help": "Section: SFTConfig of the supervised training on texts."}
    )
    reward: dict | str | None = field(default=None, metadata={"help": "Section: BestOfKRewardConfig."})
    policy: dict | str | None = field(default=None, metadata={"help": "Section: ZieglerPPOConfig."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_candidates < 2:
            raise ValueError(f"`num_candidates` is {self.num_candidates}; a comparison needs at least 2.")
        for least, names in ((1, self.counts), (0, self.counts_from_zero)):
            for name in names:
                if (value := getattr(self, name)) is not None and value < least:
                    raise ValueError(f"`{name}` is {value}; give at least {least}.")
        missing = [f"`--{name}`" for name in self.requires if getattr(self, name, None) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} must be given with this configuration; it is for data of one's own."
            )
        if self.reuse_from is not None and not Path(self.reuse_from).is_dir():
            raise ValueError(f"`reuse_from` is '{self.reuse_from}', which is no folder; give the one of other runs.")
        if not 0 <= self.label_error_rate <= 1:
            raise ValueError(f"`label_error_rate` is {self.label_error_rate}; give a share between 0 and 1.")
        if (self.model is None) != (self.documents is None):
            raise ValueError(
                "`model` and `documents` go together: give both for your own, or neither for the laptop world."
            )
        if self.mode == "online" and self.num_labels < self.online_initial_labels:
            raise ValueError(
                f"`num_labels` is {self.num_labels}, fewer than the {self.online_initial_labels} of "
                "`online_initial_labels`, which it includes; raise it or lower that."
            )
        if not self.label_poll_seconds > 0:
            raise ValueError(f"`label_poll_seconds` is {self.label_poll_seconds}; give a positive pause.")
        if self.label_store is not None:
            self._check_label_store(self.label_store)

    def _check_label_store(self, location: str) -> None:
        if self.mode == "direct":
            raise ValueError(
                f"`label_store` is '{location}', but the mode 'direct' asks nobody; leave one of the two out."
            )
        if self.label_error_rate:
            raise ValueError(
                f"`label_error_rate` is {self.label_error_rate}, the simulated labeller's, but people answer "
                "(`label_store`); leave one of the two out."
            )
        if "://" in location and urlsplit(location).password is not None:
            raise ValueError(
                "`label_store` holds a password, which the run's config.yaml would keep; leave it out and give it in "
                "PGPASSWORD or ~/.pgpass."
            )


@dataclass
class StyleArguments(RecipeArguments):
    """Settings of a stylistic continuation. An empty section `sft` uses `model` as it is."""

    sections: ClassVar[tuple[str, ...]] = (*RecipeArguments.sections, "classifier")
    counts: ClassVar[tuple[str, ...]] = (
        *RecipeArguments.counts, "frontier_queries", "frontier_samples", "passages_per_document",
    )  # fmt: skip
    counts_from_zero: ClassVar[tuple[str, ...]] = ("shared_trunk_labels",)

    documents_column: str = field(default="text", metadata={"help": "Column of `documents` that holds the text."})
    passages_per_document: int | None = field(
        default=None,
        metadata={
            "help": "Passages that each document gives, at even distances, where the documents are whole books; "
            "default: a document is one passage."
        },
    )
    reviews: str | None = field(
        default=None,
        metadata={"help": "Reviews with a text and a column label (1 positive) for the sentiment classifier."},
    )
    reviews_column: str = field(default="text", metadata={"help": "Column of `reviews` that holds the text."})
    review_tokens: int | None = field(
        default=None, metadata={"help": "Longest review the classifier is trained on; default all it can read."}
    )
    judge_model: str | None = field(
        default=None,
        metadata={"help": "A ready text-classification model (folder or hub id) instead of training a classifier."},
    )
    frontier_queries: int = field(default=64, metadata={"help": "Held-out queries for the reward-KL frontier."})
    frontier_samples: int = field(
        default=1024, metadata={"help": "Responses per frontier query; at least 20 * exp(KL) are needed."}
    )
    shared_trunk_labels: int = field(
        default=0,
        metadata={
            "help": "Labels an optimiser step for a reward head on the policy's own trunk, which PPO then optimises; "
            "0 keeps reward model and policy apart, as the paper does (section 4.2)."
        },
    )
    shared_trunk_coef: float = field(default=1.0, metadata={"help": "Weight of their loss beside PPO's."})
    classifier: dict | str | None = field(
        default=None, metadata={"help": "Section: TrainingArguments of the sentiment classifier."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_trunk_labels and self.mode != "best_of_k":
            raise ValueError(
                f"`shared_trunk_labels` is {self.shared_trunk_labels} with `mode` '{self.mode}'; a shared network has "
                "its labels before PPO, mode 'best_of_k'."
            )


SUMMARIZERS = ("supervised", "zero_shot")


@dataclass
class SummaryArguments(RecipeArguments):
    """Settings of a summarization. `documents` has texts and summaries in one of the layouts of `summaries_data`."""

    sections: ClassVar[tuple[str, ...]] = (*RecipeArguments.sections, "base")
    counts: ClassVar[tuple[str, ...]] = (*RecipeArguments.counts, "rounds", "num_curve_queries")
    counts_from_zero: ClassVar[tuple[str, ...]] = ("few_shot_examples",)

    layout: Literal["ziegler", "stiennon"] = field(
        default="ziegler",
        metadata={"help": "Ziegler et al.: T tokens, cut at a newline; Stiennon et al.: EOS ends a summary."},
    )
    starts: list[str] = field(
        default_factory=lambda: ["supervised"],
        metadata={"help": "Where RL starts: supervised, zero_shot or both; the first is the run's policy."},
    )
    candidate_sources: list[str] = field(
        default_factory=lambda: ["supervised"],
        metadata={
            "help": "Who writes candidates, in turn: supervised, zero_shot, reference (once); in later rounds policy."
        },
    )
    summary_tokens: list[int] | None = field(
        default=None, metadata={"help": "Fewest and most tokens of a reference summary (Stiennon et al.: 24 48)."}
    )
    sft_learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Rates the supervised training is swept over; default the section's only."}
    )
    normalize_to: Literal["samples", "references"] = field(
        default="samples",
        metadata={"help": "Reward 0 with deviation 1 on the start's samples, or 0 on reference summaries."},
    )
    rounds: int = field(
        default=1, metadata={"help": "Times to collect, label, retrain and continue; later ones add the policy."}
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Standard deviation of the simulated labeller's noise, in its score's units."}
    )
    num_curve_queries: int = field(
        default=128, metadata={"help": "Held-out queries that PPO is evaluated on every `policy.eval_steps`."}
    )
    few_shot_examples: int = field(
        default=2, metadata={"help": "Good summaries in the context of the few-shot baseline; 0 leaves it out."}
    )
    base: dict | str | None = field(
        default=None,
        metadata={"help": "Section: SFTConfig of the zero-shot model's training; empty uses `model` as it is."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("starts", SUMMARIZERS), ("candidate_sources", (*SUMMARIZERS, "reference", "policy"))):
            check_choices(name, getattr(self, name), known)
        if not set(SUMMARIZERS) & set(self.candidate_sources):
            raise ValueError(
                f"`candidate_sources` is {self.candidate_sources}; the first round needs 'supervised' or 'zero_shot'."
            )
        if self.mode == "online":
            self._check_online()
        if self.label_store is not None and self.label_noise:
            raise ValueError(
                f"`label_noise` is {self.label_noise}, the simulated labeller's, but people answer (`label_store`); "
                "leave one of the two out."
            )
        if "policy" in self.candidate_sources and self.rounds == 1:
            raise ValueError(
                "`candidate_sources` has 'policy', which writes from the second round on; raise `rounds`."
            )
        if self.summary_tokens is not None and len(self.summary_tokens) != 2:
            raise ValueError(f"`summary_tokens` is {self.summary_tokens}; give the fewest and the most.")

    def _check_online(self) -> None:
        if self.rounds > 1:
            raise ValueError(
                f"`rounds` is {self.rounds} with `mode` 'online', which collects labels by a schedule of its own; "
                "leave one of the two out."
            )
        if len(self.starts) > 1:
            raise ValueError(
                f"`starts` is {self.starts} with `mode` 'online', where the labels follow one policy; give one start, "
                "and run again with the other."
            )


def check_choices(name: str, values: list[str], known: Sequence[str]) -> None:
    """`ValueError` unless `values` are different ones of `known`, at least one."""
    unknown = [value for value in values if value not in known]
    if unknown or not values or len(set(values)) < len(values):
        raise ValueError(f"`{name}` is {values}; give one or more of {', '.join(known)}, each once.")


def parse_recipe_arguments(
    arguments_class: type[Arguments], default_config: Path, argv: Sequence[str] | None = None
) -> tuple[Arguments, str]:
    """Arguments from `--config` (or `default_config`), overridden by flags; and the config's name.

    Flags `--section.key value` override single keys of a section. Raises `ValueError` naming an unknown key.
    """
    flags, overrides = split_section_flags(list(sys.argv[1:] if argv is None else argv), arguments_class.sections)
    flags = separate_config(flags)
    if "--config" not in flags:
        flags = ["--config", str(default_config), *flags]
    (args,) = RecipeParser(arguments_class).parse_args_and_config(flags)
    for section, values in overrides.items():
        args.section(section).update(values)
    return args, config_of(flags).stem


def section_config(config_class: type[Config], name: str, section: dict[str, Any], **forced: Any) -> Config:
    """A section as an instance of its stage's config class.

    `forced` values come from the recipe itself (output directory, seed) and are no keys of the section. Unknown keys
    raise `ValueError` with the nearest known one; texts such as `1e-5` are converted as on a command line.
    """
    known = {item.name for item in fields(config_class) if item.init}
    refuse_unknown_keys(name, section, known - set(forced))
    parser = RecipeParser(config_class)
    parser.set_defaults_with_config(**section, **forced)
    (config,) = parser.parse_args_into_dataclasses(args=[])
    return config


def section_task(task: Task, section: dict[str, Any]) -> Task:
    """`task` with the fields the section changes."""
    refuse_unknown_keys("task", section, {item.name for item in fields(Task)})
    return replace(task, **section)


def refuse_unknown_keys(name: str, section: dict[str, Any], known: set[str]) -> None:
    """`ValueError` naming the first key of the section that is not known, and the nearest that is."""
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise ValueError(f"Unknown key '{key}' in the section '{name}'{hint}")
