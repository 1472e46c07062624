"""Simulated people at a labelling page: they see what it shows and answer over HTTP, each with a token and a taste.

They know the embedded world, so they can judge its texts only.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from statistics import variance

from ..labelers import Labeler, ScoreFunction, paper_labelers
from ..labelers.human.page_client import PageClient
from ..labelers.protocol import Text
from . import laptop

IDLE_SECONDS = 1.0
"""Pause before somebody who has nothing to do asks again: many who ask often take their time from the training."""


@dataclass
class SimulatedLabellersArguments:
    """Arguments of `recipes/simulated_labellers.py`."""

    address: str = field(metadata={"help": "Of the labelling page, for example http://127.0.0.1:8300/."})
    tokens: str = field(
        metadata={"help": "File with a name and a token in each line, as --add_labeller of the page's command prints."}
    )
    task: str = field(metadata={"help": "sentiment, descriptiveness, tldr or cnndm: what they look for."})
    seconds: float = field(default=0.0, metadata={"help": "How long each of them looks at a comparison."})
    seed: int = field(default=0, metadata={"help": "Other people."})


def main(args: SimulatedLabellersArguments) -> None:
    """Answer until interrupted, or until somebody is refused; then say how many answers each has given."""
    tokens = read_tokens(Path(args.tokens))
    people = simulated_people(args.task, list(tokens), args.seed)
    clients = {name: PageClient(args.address, token) for name, token in tokens.items()}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts = dict.fromkeys(tokens, 0)
    try:
        answer_together(clients, people, args.seconds, counts)
    except KeyboardInterrupt:
        print("\n".join(f"{name}\t{count} answers" for name, count in counts.items()), flush=True)


def read_tokens(path: Path) -> dict[str, str]:
    """Token by name; `ValueError` for a line without one, which is not repeated, since it may hold half a token."""
    tokens: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, tab, token = line.partition("\t")
        if not (name and tab and token):
            raise ValueError(f"{path}, line {number} is no name and token with a tab between; add the labeller again.")
        tokens[name] = token
    if not tokens:
        raise ValueError(f"{path} is empty; write the output of `python -m trl_ziegler.label --add_labeller` into it.")
    return tokens


def simulated_people(task: str, names: list[str], seed: int) -> dict[str, Labeler]:
    """A labeller by name who agrees with the others as often as the paper's people did; see `paper_labelers`.

    Raises:
        ValueError: a task that the embedded world does not have.
    """
    scores: dict[str, ScoreFunction] = {
        "sentiment": _of_completion(laptop.true_sentiment),
        "descriptiveness": _of_completion(laptop.true_vividness),
        "tldr": laptop.SummaryScorer(),
        "cnndm": laptop.SummaryScorer(),
    }
    if task not in scores:
        raise ValueError(f"`task` is '{task}'; simulated people know what to look for in {', '.join(scores)}.")
    kind = "tldr" if task in ("tldr", "cnndm") else "sentiment"
    panel, _ = paper_labelers(kind, OwnSpread(scores[task]), labellers=len(names), seed=seed)
    return dict(zip(names, panel.members.values(), strict=True))


def _of_completion(truth: Callable[[str], float]) -> ScoreFunction:
    return lambda prompts, completions, **columns: [truth(str(text)) for text in completions]


class OwnSpread:
    """A score in units of its `score_spread` over the comparisons that it was asked about so far, one at a time."""

    def __init__(self, score_fn: ScoreFunction) -> None:
        self._score_fn = score_fn
        self._lock = threading.Lock()
        self._variance, self._comparisons = 0.0, 0

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """The scores of the K candidates of one comparison."""
        scores = self._score_fn(prompts, completions, **columns)
        with self._lock:
            self._variance += variance(scores)
            self._comparisons += 1
            spread = math.sqrt(self._variance / self._comparisons)
        return [score / (spread or 1.0) for score in scores]


def answer_together(
    clients: Mapping[str, PageClient], people: Mapping[str, Labeler], seconds: float, counts: dict[str, int]
) -> None:
    """Let all answer at the same time, without end; the first error of one of them ends the work of all.

    Args:
        clients: Each one's access to the page.
        people: Who chooses.
        seconds: How long each looks at a comparison.
        counts: Gets the number of answers given by each.
    """
    ended = threading.Event()
    with ThreadPoolExecutor(len(clients)) as pool:
        work = [
            pool.submit(_answer, name, page, people[name], seconds, ended, counts) for name, page in clients.items()
        ]
        try:
            for person in wait(work, return_when=FIRST_EXCEPTION).done:
                person.result()
        finally:
            ended.set()


def _answer(
    name: str, page: PageClient, labeler: Labeler, seconds: float, ended: threading.Event, counts: dict[str, int]
) -> None:
    while not ended.is_set():
        work = page.next()
        if work is None:
            ended.wait(IDLE_SECONDS)
            continue
        shown = time.monotonic()
        (place,) = labeler.label([work["prompt"]], [work["completions"]])
        ended.wait(seconds)
        page.answer(work["id"], place=place, seconds=time.monotonic() - shown)
        counts[name] += 1
