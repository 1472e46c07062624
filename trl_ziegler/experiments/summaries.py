"""Summarization (Ziegler et al. 2019, section 3.2, and its successors): from a language model to a table.

Each stage reads what earlier ones left in the run directory and writes its own folder; see `pipeline.run_stages`. With
several rounds (Stiennon et al. 2020, section 3.1) the folders of all but the last are called `<stage>_round_<number>`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from types import MappingProxyType

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from .._files import write_jsonl
from ..labelers import CopiedShare, ReferenceOverlap, ScoreLabeler
from ..ppo_config import ZieglerPPOConfig
from ..reward_trainer import BestOfKRewardConfig
from ..reward_wrapper import RewardFunction, function_name
from ..tasks import CNNDM, STIENNON_CNNDM, STIENNON_TLDR, TLDR, BoundTask
from .arguments import SUMMARIZERS, SummaryArguments, section_task
from .experiment import Experiment, load_model
from .generation import Generator, authors_of, collect_candidates
from .labelling import label_all
from .online import finish_collection, last_reward, start_collection
from .pipeline import Stage, read_jsonl, write_json
from .summaries_data import Part
from .summaries_evaluation import (
    Summaries,
    SummaryJudge,
    best_of_n,
    compare,
    predictors_of_labels,
    sampled,
    written,
)
from .summaries_records import (
    Record,
    make_records,
    ranked,
    stiennon_queries,
    supervised_rows,
    whole_texts,
    without_context,
)
from .summaries_text import few_shot_query, lead_3
from .summaries_worlds import make_summary_world
from .training import normalized_reward_model, start_model, train_policy, train_reward_model

TASKS = {
    ("tldr", "ziegler"): TLDR,
    ("cnndm", "ziegler"): CNNDM,
    ("tldr", "stiennon"): STIENNON_TLDR,
    ("cnndm", "stiennon"): STIENNON_CNNDM,
}
DATA = ("seed", "model", "documents", "world", "task", "layout", "summary_tokens")


class SummaryExperiment(Experiment[SummaryArguments]):
    """The stages of one summarization run, "tldr" or "cnndm"."""

    arguments = SummaryArguments
    tasks = ("tldr", "cnndm")
    configs = MappingProxyType(
        {"base": SFTConfig, "sft": SFTConfig, "reward": BestOfKRewardConfig, "policy": ZieglerPPOConfig}
    )
    optional = ("base",)

    def __init__(self, name: str, args: SummaryArguments, run_dir: Path) -> None:
        super().__init__(name, args, run_dir)
        self.records: Callable[[Part], list[Record]] = cache(self._records)
        self.world = make_summary_world(name, args)
        self.world.judge(args.label_noise)  # noise that this world does not know is refused here
        self.task = section_task(TASKS[name, args.layout], args.section("task"))

    def stages(self) -> list[Stage]:
        """The stages in order, each with the settings its result depends on."""
        stages = [
            Stage("base", self.base, self.settings((*DATA, "base"))),
            Stage("sft", self.sft, self.settings((*DATA, "sft", "sft_learning_rates", "num_eval_queries"))),
        ]
        for number in range(1, self.args.rounds + 1):
            stages += self._round(number)
        for start in self.args.starts[1:]:
            run = partial(self.policy, number=self.args.rounds, start=start)
            stages.append(Stage(f"policy_{start}", run, self.settings(("policy", "task", "seed"))))
        keys = ("num_candidates", "num_eval_queries", "few_shot_examples", "starts", "task", "seed")
        return [*stages, Stage("evaluate", self.evaluate, self.settings(keys))]

    def _round(self, number: int) -> list[Stage]:
        collected = ("num_labels", "num_eval_labels", "num_candidates", "candidate_sources", "normalize_to")
        queries = ("num_policy_queries", "num_normalization_samples", "mode")
        keys = {
            "collect": (*DATA, *collected, *queries, "rounds"),
            "label": ("label_error_rate", "label_noise", *self.people, "seed"),
            "reward": ("reward", "num_eval_labels", "normalize_to", "seed"),
            "policy": ("policy", "num_curve_queries", "task", "seed", "mode", *self.online),
        }
        if self.args.mode != "best_of_k":
            del keys["reward"]
        if self.args.mode == "direct":
            del keys["label"]
        stages = []
        for step, read in keys.items():
            # Further starts are stages of their own, so all of a round depends on the first alone.
            settings = {**self.settings(read), "start": self.args.starts[0]}
            stages.append(Stage(self.folder(step, number).name, partial(getattr(self, step), number=number), settings))
        return stages

    def folder(self, step: str, number: int) -> Path:
        """Where a stage's artifact of one round lies."""
        return self.run_dir / (step if number == self.args.rounds else f"{step}_round_{number}")

    # ---- Stages -----------------------------------------------------------------------------------------------------

    def base(self, folder: Path) -> None:
        """Train the zero-shot model on documents with summaries as the web has them, or take a model as it is."""
        start_model(
            folder,
            "base",
            self.args.model,
            self.trainer_config("base", folder) if self.args.base else None,
            self.world.start_model,
            lambda tokenizer: whole_texts(self.records("train"), tokenizer.eos_token_id),
        )

    def sft(self, folder: Path) -> None:
        """Train the supervised baseline on reference summaries, once for each rate; keep the lowest held-out loss."""
        train = supervised_rows(self.records("train"))
        held_out = supervised_rows(self.records("validation")[: self.args.num_eval_queries])
        rates: Sequence[float | None] = self.args.sft_learning_rates or (None,)
        losses: dict[str, float] = {}
        for rate in rates:
            config = self.trainer_config("sft", folder)
            config.completion_only_loss = True
            if rate is not None:
                config.learning_rate = rate
            model, tokenizer = load_model(self.model_path("zero_shot"))
            trainer = SFTTrainer(
                model=model.train(),
                args=config,
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=tokenizer,
            )
            trainer.train()
            loss = trainer.evaluate()["eval_loss"]
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"The supervised training at the learning rate {config.learning_rate} ended with a held-out "
                    f"loss of {loss}; lower `sft.learning_rate` or leave it out of `sft_learning_rates`."
                )
            if not losses or loss < min(losses.values()):
                trainer.save_model(str(folder / "model"))
                if PartialState().is_main_process:
                    write_json(folder / "log_history.json", trainer.state.log_history)
            losses[str(config.learning_rate)] = loss
        if PartialState().is_main_process:
            write_json(folder / "metrics.json", {"eval_loss": losses})

    def collect(self, folder: Path, *, number: int) -> None:
        """Sample candidates for this round's labels (online: held-out ones) and for the normalisation."""
        if not PartialState().is_main_process:
            return
        records = self.records("train")
        write_jsonl(folder / "train_queries.jsonl", without_context(records[: self.args.num_policy_queries]))
        write_jsonl(folder / "eval_queries.jsonl", without_context(self.records("validation")))
        if self.args.mode == "direct":
            return
        count = self.args.num_eval_labels + (0 if self.args.mode == "online" else self.args.num_labels)
        if len(records) < number * count:
            raise ValueError(
                f"The documents give {len(records)} queries, {number * count} are to be labelled in {number} rounds; "
                "give more documents or lower `num_labels` and `num_eval_labels`."
            )
        rows, rejected = self._candidates(records[(number - 1) * count : number * count], number)
        write_jsonl(folder / "candidates.jsonl", rows)
        write_json(folder / "metrics.json", {"rejected_share": rejected})
        write_jsonl(folder / "normalization.jsonl", self._normalization_samples(records))

    def label(self, folder: Path, *, number: int) -> None:
        """Let people pick the best of each K, or the simulated labeller, who also ranks them."""
        rows = read_jsonl(self.folder("collect", number) / "candidates.jsonl")
        main = PartialState().is_main_process
        if self.args.label_store is not None:
            rows = label_all(self.collecting_labeler, rows, self.args.label_poll_seconds)
        elif main:
            rows = ranked(self.labeler(), rows)
        if main:
            write_jsonl(folder / "labels.jsonl", rows)

    def reward(self, folder: Path, *, number: int) -> None:
        """Train the reward model on the labels of all rounds so far; this round's last labels are held out."""
        held_out = self.args.num_eval_labels
        rounds = [read_jsonl(self.folder("label", i) / "labels.jsonl") for i in range(1, number + 1)]
        train = [row for rows in rounds for row in rows[: len(rows) - held_out]]
        train_reward_model(
            folder,
            self.trainer_config("reward", folder),
            self.model_path(self.args.starts[0]),
            train + rounds[-1][len(rounds[-1]) - held_out :],
            read_jsonl(self.folder("collect", number) / "normalization.jsonl"),
            held_out=held_out,
            normalize_to=self.args.normalize_to,
        )

    def policy(self, folder: Path, *, number: int, start: str | None = None) -> None:
        """PPO from a start model; in later rounds from the last round's policy, still near the start model."""
        first = start or self.args.starts[0]
        judge = self.world.judge()
        # The judge comes last, and takes its own place where ROUGE is the judge.
        functions: tuple[RewardFunction, ...] = (ReferenceOverlap(), CopiedShare(), judge)
        named = {function_name(function): function for function in functions}
        config = self.trainer_config("policy", folder)
        collection = None
        if self.args.mode == "online":
            rest = without_context(self.records("train")[self.args.num_eval_labels :])
            collection, optimized = start_collection(
                self, folder, config, self.model_path(first), rest, normalize_to=self.args.normalize_to
            )
        else:
            optimized = judge if self.args.mode == "direct" else self.reward_model(number)
        logged = [function for function in named.values() if function is not optimized]
        config.reward_weights = [1.0] + [0.0] * len(logged)
        continued = number > 1 and start is None
        collected = self.folder("collect", number)
        train_policy(
            folder,
            config,
            str(self.folder("policy", number - 1) / "model") if continued else self.model_path(first),
            read_jsonl(collected / "train_queries.jsonl"),
            [optimized, *logged],
            self.task,
            reference=self.model_path(first) if continued else None,
            eval_rows=read_jsonl(collected / "eval_queries.jsonl")[: self.args.num_curve_queries],
            pretraining=self._pretraining() if config.ptx_coef else None,
            collection=collection,
            aliases={"score/true": function_name(judge), "copied_share": "copied_share", "rouge_mean": "rouge_mean"},
        )
        if collection is not None:
            finish_collection(folder, collection)

    def evaluate(self, folder: Path) -> None:
        """Every row of the table, on held-out queries."""
        if not PartialState().is_main_process:
            return
        records = self.records("validation")[: self.args.num_eval_queries]
        reward_model = None if self.args.mode == "direct" else self.reward_model(self.args.rounds)
        judge = SummaryJudge(records, self.world.judge(), reward_model, self.world.facts)
        metrics, samples = compare(self._authors(records, judge), judge)
        if self.args.mode != "direct":
            labels = read_jsonl(self.folder("label", self.args.rounds) / "labels.jsonl")
            metrics["predictors"] = predictors_of_labels(labels[-self.args.num_eval_labels :])
        write_json(folder / "metrics.json", metrics)
        write_jsonl(folder / "samples.jsonl", samples)

    # ---- What stages share ------------------------------------------------------------------------------------------

    def model_path(self, name: str) -> str:
        """Path or id of the zero-shot or the supervised model."""
        if name == "supervised":
            return str(self.run_dir / "sft" / "model")
        pointer = json.loads((self.run_dir / "base" / "start.json").read_text())["model"]
        return pointer or str(self.run_dir / "base" / "model")

    def reward_model(self, number: int) -> PreTrainedModel:
        """The reward model of a round, or the last one of online collection."""
        online = self.args.mode == "online"
        return normalized_reward_model(
            last_reward(self.run_dir / "policy") if online else self.folder("reward", number)
        )

    def labeler(self) -> ScoreLabeler:
        """The simulated labeller: the judge, with noise and slips."""
        judge = self.world.judge(self.args.label_noise)
        return ScoreLabeler(judge, error_rate=self.args.label_error_rate, seed=self.args.seed)

    @cached_property
    def bound(self) -> BoundTask:
        """The task in the tokenizer's ids."""
        return self.task.bind(self.world.tokenizer)

    def _records(self, part: Part) -> list[Record]:
        """Each document of a part as the models read it; see `make_records`."""
        rows = self.world.rows(part)
        if self.args.layout == "ziegler":
            encoded = self.world.tokenizer([row["document"] for row in rows], add_special_tokens=False)["input_ids"]
            return make_records(rows, [self.bound.query(ids) for ids in encoded], self.bound, self.world.tokenizer)
        queries = stiennon_queries(self.name, rows, self.world.tokenizer, self.task.query_length)
        return make_records(rows, queries, self.bound, self.world.tokenizer)

    def _generator(self, path: str | Path, seed: int, reference: PreTrainedModel | None = None) -> Generator:
        model, _ = load_model(path)
        return Generator(
            model, self.bound, seed=self.args.seed + seed, batch_size=self.args.batch_size, reference=reference
        )

    def _candidates(self, records: list[Record], number: int) -> tuple[list[Record], dict[str, float]]:
        """K candidates of each record, see `authors_of`; and the share of each model's rejected draws."""
        sources = [name for name in self.args.candidate_sources if name != "policy" or number > 1]
        authors = [authors_of(i, sources, self.args.num_candidates) for i in range(len(records))]
        found: list[list[list[int]]] = [[] for _ in records]
        rejected = {}
        for seed, name in enumerate(sources):
            counts = [row.count(name) for row in authors]
            if name == "reference":
                written = [[record["reference_ids"]] * n for record, n in zip(records, counts, strict=True)]
            else:
                written, rejected[name] = self._model_candidates(records, counts, name, number, seed)
            for candidates, more in zip(found, written, strict=True):
                candidates += [ids for ids in more if ids not in candidates]
        rows = [
            {
                "prompt_ids": record["prompt_ids"],
                "prompt": record["prompt"],
                "reference": record["reference"],
                "completion_ids": candidates,
                "completions": self.world.tokenizer.batch_decode(candidates, skip_special_tokens=True),
                "sources": sorted(names, key=sources.index),
            }
            for record, candidates, names in zip(records, found, authors, strict=True)
            if len(candidates) == self.args.num_candidates
        ]
        return rows, rejected

    def _model_candidates(
        self, records: list[Record], counts: list[int], name: str, number: int, seed: int
    ) -> tuple[list[list[list[int]]], float]:
        path = self.folder("policy", number - 1) / "model" if name == "policy" else self.model_path(name)
        generator = self._generator(path, 10 * number + seed)
        wanted = list(zip([record["prompt_ids"] for record in records], counts, strict=True))
        rows, rejected = collect_candidates(generator, [query for query, n in wanted if n], max(counts))
        by_query = {tuple(row["prompt_ids"]): row["completion_ids"] for row in rows}
        return [by_query.get(tuple(query), [])[:n] for query, n in wanted], rejected

    def _normalization_samples(self, records: list[Record]) -> list[Record]:
        records = records[: self.args.num_normalization_samples]
        queries = [record["prompt_ids"] for record in records]
        if self.args.normalize_to == "references":
            responses = [record["reference_ids"] for record in records]
        else:
            generator = self._generator(self.model_path(self.args.starts[0]), 1)
            responses = generator.sample(queries).responses.tolist()
        return [{"prompt_ids": q, "response_ids": y} for q, y in zip(queries, responses, strict=True)]

    def _pretraining(self) -> Dataset:
        """Documents as the zero-shot model knows them."""
        return Dataset.from_dict({"text": [record["document"] for record in self.records("train")]})

    def _authors(self, records: list[Record], judge: SummaryJudge) -> dict[str, Summaries]:
        """Who summarized the held-out documents, in the order of the table."""
        tokenizer, args = self.world.tokenizer, self.args
        queries = [record["prompt_ids"] for record in records]
        # Seeds of their own: draws in common would tie the responses that are compared to each other.
        models = {name: self._generator(self.model_path(name), 100 + i) for i, name in enumerate(SUMMARIZERS)}
        authors = {name: sampled(model, tokenizer, queries, description=name) for name, model in models.items()}
        if args.few_shot_examples:
            authors["few_shot"] = self._few_shot(models["zero_shot"], records)
        for i, start in enumerate(args.starts):
            name = "policy" if i == 0 else f"rl_{start}"
            path = self.run_dir / ("policy" if i == 0 else f"policy_{start}") / "model"
            policy = self._generator(path, 200 + i, reference=models[start].model.policy)
            authors[name] = sampled(policy, tokenizer, queries, description=name)
        first = models[args.starts[0]]
        authors["best_of_n"] = best_of_n(first, tokenizer, queries, judge.rewards, args.num_candidates)
        authors["lead_3"] = written(tokenizer, self.bound, [lead_3(record["document"]) for record in records])
        authors["reference"] = written(tokenizer, self.bound, [record["reference"] for record in records])
        return authors

    def _few_shot(self, zero_shot: Generator, records: list[Record]) -> Summaries:
        """The zero-shot model with a few good summaries before the document."""
        tokenizer = self.world.tokenizer
        generator = Generator(
            zero_shot.model.policy,
            replace(self.bound, prefix_ids=(), suffix_ids=()),
            seed=self.args.seed + 102,
            batch_size=self.args.batch_size,
        )
        limit = zero_shot.model.policy.config.max_position_embeddings - self.task.response_length
        examples = [
            {**record, "summary": record["reference"]}
            for record in self.records("train")[: self.args.few_shot_examples]
        ]
        queries = [few_shot_query(tokenizer, record, examples, self.task.query_length, limit) for record in records]
        return sampled(generator, tokenizer, queries, description="few_shot")
