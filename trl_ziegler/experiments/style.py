"""Stylistic continuation (Ziegler et al. 2019, section 3.1): the stages from a classifier to the reward-KL frontier.

Each stage reads what earlier ones left in the run directory and writes its own folder; see `pipeline.run_stages`.
"""

import json
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig

from .._files import folder_or_hub_id, write_jsonl
from ..kl_control import FixedKLController
from ..labelers import ScoreLabeler, SentimentScorer, VividnessScorer
from ..ppo_config import ZieglerPPOConfig
from ..reward_trainer import BestOfKRewardConfig
from ..reward_wrapper import KLEntropyReward, function_name
from ..tasks import BOOKS
from .arguments import StyleArguments, section_task
from .evaluation import Judged, evaluate_policy
from .experiment import Experiment, load_model
from .generation import Generator, collect_candidates
from .labelling import label_all
from .online import finish_collection, last_reward, start_collection
from .passages import cut_queries
from .pipeline import Stage, read_jsonl, write_json
from .shared_trunk import train_shared_policy
from .training import normalized_reward_model, start_model, train_policy, train_reward_model
from .worlds import make_world, require_judge


class StyleExperiment(Experiment[StyleArguments]):
    """The stages of one stylistic-continuation run, "sentiment" or "descriptiveness"."""

    arguments = StyleArguments
    tasks = ("sentiment", "descriptiveness")
    configs = MappingProxyType(
        {
            "classifier": TrainingArguments,
            "sft": SFTConfig,
            "reward": BestOfKRewardConfig,
            "policy": ZieglerPPOConfig,
        }
    )
    optional = ("sft",)

    def __init__(self, name: str, args: StyleArguments, run_dir: Path) -> None:
        super().__init__(name, args, run_dir)
        self.world = make_world(args)
        if name == "sentiment":
            require_judge(args)  # before the first stage reads models and texts
        self.task = section_task(BOOKS, args.section("task"))

    def stages(self) -> list[Stage]:
        """The stages in order, each with the settings its result depends on."""
        documents = ("documents", "documents_column", "passages_per_document")
        reviews = ("reviews", "reviews_column")
        common = ("seed", "model", *documents, "world", "task")
        keys = {
            "classifier": (*reviews, "review_tokens", "judge_model", "classifier", "seed", "model", "world"),
            "sft": ("sft", "seed", "model", *documents, "world"),
            "collect": (
                *common,
                "num_candidates",
                "num_labels",
                "num_eval_labels",
                "num_policy_queries",
                "num_eval_queries",
                "num_normalization_samples",
                "mode",
            ),
            "label": ("label_error_rate", *self.people, "seed"),
            "reward": ("reward", "num_eval_labels", "seed"),
            "policy": ("policy", "task", "seed", "mode", *self.online, *self.shared),
            "evaluate": ("frontier_queries", "frontier_samples", "task", "seed"),
        }
        left_out = {"reward"} if self.args.mode == "online" else set()
        if self.name == "descriptiveness":
            left_out.add("classifier")
        if self.args.mode == "direct":
            left_out |= {"label", "reward"}
        return [
            Stage(name, getattr(self, name), self.settings(read))
            for name, read in keys.items()
            if name not in left_out
        ]

    @property
    def shared(self) -> tuple[str, ...]:
        """What the stage `policy` depends on where its trunk is the reward model's too."""
        return ("shared_trunk_labels", "shared_trunk_coef") if self.args.shared_trunk_labels else ()

    # ---- Stages -----------------------------------------------------------------------------------------------------

    def classifier(self, folder: Path) -> None:
        """Train the sentiment classifier on reviews, and measure it on held-out ones."""
        if self.args.judge_model is not None:
            judge = folder_or_hub_id(self.args.judge_model)
            if PartialState().is_main_process:
                write_json(folder / "metrics.json", {"model": judge})
            return
        model, tokenizer = self.world.classifier()
        self._training_documents(tokenizer)  # not needed yet, but bad ones are refused here
        model.config.id2label, model.config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
        limit = self.args.review_tokens or model.config.max_position_embeddings
        # GPT-2 classifiers read their logits at the last token that is not PAD; an EOS inside a review is none.
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        rows = self.world.reviews("train")
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=limit)["input_ids"]
        trainer = Trainer(
            model=model,
            args=self.trainer_config("classifier", folder),
            train_dataset=Dataset.from_dict({"input_ids": encoded, "labels": [row["label"] for row in rows]}),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        held_out = self.world.reviews("test")
        scorer = SentimentScorer(model, tokenizer, batch_size=self.args.batch_size, max_length=limit)
        scores = scorer.score_texts([row["text"] for row in held_out])
        right = sum((score > 0) == bool(row["label"]) for score, row in zip(scores, held_out, strict=True))
        if PartialState().is_main_process:
            trainer.save_model(str(folder / "model"))
            tokenizer.save_pretrained(folder / "model")
            write_json(folder / "metrics.json", {"accuracy": right / len(held_out), "n": len(held_out)})

    def sft(self, folder: Path) -> None:
        """Train the start model on the documents, or point to it where it is used as it is."""
        start_model(
            folder,
            "sft",
            self.args.model,
            self.trainer_config("sft", folder) if self.args.sft else None,
            self.world.start_model,
            lambda tokenizer: Dataset.from_dict({"text": self._training_documents(tokenizer)}),
        )

    def collect(self, folder: Path) -> None:
        """Cut queries, sample candidates for labels and samples for the normalisation, all from the start model.

        Where labels are collected online, these candidates are for the held-out ones alone.
        """
        model, tokenizer = self.start_model()
        task = self.task.bind(tokenizer)
        labels = 0 if self.args.mode == "direct" else self.args.num_labels + self.args.num_eval_labels
        needed = max(labels, self.args.num_policy_queries, self.args.num_normalization_samples)
        train, test = (
            cut_queries(self.world.documents(split), task, tokenizer, count, split)
            for split, count in (("train", needed), ("test", self.args.num_eval_queries))
        )
        histogram = {str(length): count for length, count in sorted(Counter(map(len, train)).items())}
        if not PartialState().is_main_process:
            return
        write_jsonl(folder / "train_queries.jsonl", with_text(tokenizer, train))
        write_jsonl(folder / "eval_queries.jsonl", with_text(tokenizer, test))
        generator = Generator(model, task, seed=self.args.seed, batch_size=self.args.batch_size)
        metrics: dict[str, Any] = {"query_lengths": histogram}
        if labels:
            shown = train[: self.args.num_eval_labels if self.args.mode == "online" else labels]
            rows, metrics["rejected_share"] = collect_candidates(generator, shown, self.args.num_candidates)
            write_jsonl(folder / "candidates.jsonl", [{**row, **decoded(tokenizer, row)} for row in rows])
            sampled = train[: self.args.num_normalization_samples]
            responses = generator.sample(sampled).responses.tolist()
            pairs = zip(sampled, responses, strict=True)
            write_jsonl(folder / "normalization.jsonl", [{"prompt_ids": q, "response_ids": y} for q, y in pairs])
        write_json(folder / "metrics.json", metrics)

    def label(self, folder: Path) -> None:
        """Let people or the simulated labeller pick the best of each K."""
        rows = read_jsonl(self.run_dir / "collect" / "candidates.jsonl")
        labelled = label_all(self.collecting_labeler, rows, self.args.label_poll_seconds)
        if PartialState().is_main_process:
            write_jsonl(folder / "labels.jsonl", labelled)

    def reward(self, folder: Path) -> None:
        """Train the reward model on the labels, normalised over the start model's samples before and after."""
        samples = read_jsonl(self.run_dir / "collect" / "normalization.jsonl")
        train_reward_model(
            folder,
            self.trainer_config("reward", folder),
            self.start_path(),
            read_jsonl(self.run_dir / "label" / "labels.jsonl"),
            samples,
            held_out=self.args.num_eval_labels,
        )

    def policy(self, folder: Path) -> None:
        """PPO from the start model, on a reward model, on the judge, or on reward models whose labels it collects."""
        config = self.trainer_config("policy", folder)
        queries = read_jsonl(self.run_dir / "collect" / "train_queries.jsonl")
        collection = None
        if self.args.shared_trunk_labels:
            self._shared_policy(folder, config, queries[: self.args.num_policy_queries])
            return
        if self.args.mode == "online":
            rest = queries[self.args.num_eval_labels :]
            collection, reward = start_collection(self, folder, config, self.start_path(), rest)
            rewards, config.reward_weights = [reward, self.judge()], [1.0, 0.0]
        else:
            rewards, config.reward_weights = self.reward_functions()
        train_policy(
            folder,
            config,
            self.start_path(),
            queries[: self.args.num_policy_queries],
            rewards,
            self.task,
            collection=collection,
            aliases={"score/true": function_name(rewards[-1])},
        )
        if collection is not None:
            finish_collection(folder, collection)

    def _shared_policy(self, folder: Path, config: ZieglerPPOConfig, queries: list[dict[str, Any]]) -> None:
        """PPO on a reward head of the policy's own trunk."""
        train_shared_policy(
            folder,
            config,
            self.trainer_config("reward", folder),
            self.start_path(),
            queries,
            self.judge(),
            self.task,
            read_jsonl(self.run_dir / "label" / "labels.jsonl"),
            read_jsonl(self.run_dir / "collect" / "normalization.jsonl"),
            held_out=self.args.num_eval_labels,
            labels_per_step=self.args.shared_trunk_labels,
            label_coef=self.args.shared_trunk_coef,
        )

    def evaluate(self, folder: Path) -> None:
        """Win rate, KL, samples and the reward-KL frontier on held-out queries."""
        if not PartialState().is_main_process:
            return
        start, tokenizer = self.start_model()
        policy, _ = load_model(self.run_dir / "policy" / "model")
        task = self.task.bind(tokenizer)
        rewards, _ = self.reward_functions()
        score = KLEntropyReward(
            rewards[:1], [1.0], task, tokenizer, FixedKLController(0.0), batch_size=self.args.batch_size
        )
        truth = self.world.truth
        judged = Judged(
            score=score, judge=self.judge(), truth=None if truth is None else lambda text: truth(self.name, text)
        )
        queries = [row["prompt_ids"] for row in read_jsonl(self.run_dir / "collect" / "eval_queries.jsonl")]
        # Two seeds: draws in common would tie the responses that are compared to each other.
        seed, size = self.args.seed, self.args.batch_size
        models = {
            "zero_shot": Generator(start, task, seed=seed + 1, batch_size=size),
            "policy": Generator(policy, task, seed=seed + 2, batch_size=size, reference=start),
        }
        results = evaluate_policy(
            models,
            judged,
            tokenizer,
            queries,
            best_of=self.args.num_candidates,
            frontier_queries=self.args.frontier_queries,
            frontier_samples=self.args.frontier_samples,
        )
        for name in ("metrics", "frontier"):
            write_json(folder / f"{name}.json", results[name])
        write_jsonl(folder / "samples.jsonl", results["samples"])

    # ---- What stages share ------------------------------------------------------------------------------------------

    def start_path(self) -> str:
        """Path or id of the start model rho."""
        pointer = json.loads((self.run_dir / "sft" / "start.json").read_text())["model"]
        return pointer or str(self.run_dir / "sft" / "model")

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The start model rho in float32, and its tokenizer."""
        return load_model(self.start_path())

    def judge(self) -> SentimentScorer | VividnessScorer:
        """The scripted labeller's score, which is also the judge of win rates."""
        if self.name == "descriptiveness":
            return VividnessScorer()
        model = self.args.judge_model or self.run_dir / "classifier" / "model"
        return SentimentScorer(model, batch_size=self.args.batch_size)

    def reward_functions(self) -> tuple[list[Any], list[float]]:
        """What PPO optimises, and their weights; on a reward model the judge is only logged beside it."""
        if self.args.mode == "direct":
            return [self.judge()], [1.0]
        online = self.args.mode == "online"
        folder = last_reward(self.run_dir / "policy") if online else self.run_dir / "reward"
        return [normalized_reward_model(folder), self.judge()], [1.0, 0.0]

    def labeler(self) -> ScoreLabeler:
        """The simulated labeller: the judge, with slips."""
        return ScoreLabeler(self.judge(), error_rate=self.args.label_error_rate, seed=self.args.seed)

    def _training_documents(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The training documents, refused before hours of training where they will give no queries after it."""
        documents = self.world.documents("train")
        cut_queries(documents, self.task.bind(tokenizer), tokenizer, 1, "train")
        return documents


def with_text(tokenizer: PreTrainedTokenizerBase, queries: list[list[int]]) -> list[dict[str, Any]]:
    """Queries as rows `{"prompt_ids", "prompt"}`."""
    texts = tokenizer.batch_decode(queries)
    return [{"prompt_ids": query, "prompt": text} for query, text in zip(queries, texts, strict=True)]


def decoded(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """The text columns of a row of ids."""
    completions = tokenizer.batch_decode(row["completion_ids"], skip_special_tokens=True)
    return {"prompt": tokenizer.decode(row["prompt_ids"]), "completions": completions}
