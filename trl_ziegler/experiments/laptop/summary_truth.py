"""What a summary is truly worth: accuracy, coverage and brevity, read by the rules that documents are made by.

It works on any English text; sentences that are not of this world state nothing.
"""

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from ...labelers.protocol import Text, plain_text
from .facts import NEWS, POSTS, Domain, Fact
from .grammar import tokens

HERE = "§"  # stands for the subject in a form


def facts_in(text: str) -> set[Fact]:
    """Return the facts that `text` states, in whatever form.

    A sentence is read as a whole: an opener, one or more clauses joined by "and" or "but" (a predicate alone is about
    the subject before it), and a tail. If any part of it is not a form of this world, the sentence states nothing.
    Case, commas and a missing last period do not matter; facts of posts and news are read alike.
    """
    return set(stated(text))


def main_facts(text: str) -> set[Fact]:
    """Return the main facts of a document: those about the subject of the first fact it states. May be empty."""
    facts = stated(text)
    return {fact for fact in facts if fact.subject == facts[0].subject}


@lru_cache(maxsize=8192)  # a document is read again for each of its summaries
def stated(text: str) -> tuple[Fact, ...]:
    """The facts of `text` in the order they are stated, repetitions included."""
    sentences = re.split(r"[.!?\n]", text.lower())
    return tuple(fact for sentence in sentences for fact in stated_by(sentence.replace(",", "")))


def stated_by(sentence: str) -> list[Fact]:
    """The facts of one sentence in lower case and without commas; none if a part of it cannot be read."""
    facts: list[Fact] = []
    for clause in re.split(r" (?:and|but) ", OPENER.sub("", plain(sentence))):
        subject = facts[-1].subject if facts else None
        fact = read(clause, subject) or read(TAIL.sub("", clause), subject)
        if fact is None:
            return []
        facts.append(fact)
    return facts


def read(clause: str, subject: str | None) -> Fact | None:
    """The fact of a clause, or of a predicate about a `subject` named before."""
    for match in SUBJECT.finditer(clause):
        form = clause[: match.start()] + HERE + clause[match.end() :]
        if form in FORMS:
            return Fact(SUBJECTS[match["who"]], *FORMS[form])
    form = f"{HERE} {clause}"
    return Fact(subject, *FORMS[form]) if subject is not None and form in FORMS else None


def plain(text: str) -> str:
    """Lower case, single spaces, "a" for "an"."""
    return re.sub(r"\ban\b", "a", " ".join(text.lower().split()))


def all_forms(domain: Domain) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every form of a domain with its object filled in, and the (relation, object) it means."""
    for relation in domain.relations:
        for form in relation.told + relation.short:
            for thing in relation.objects:
                clause = form if "{s}" in form else "{s} " + form
                yield plain(clause.format(s=HERE, o=thing)), (relation.name, thing)


def phrases(templates: list[str]) -> str:
    """A regular expression for any of the texts, in lower case and without commas."""
    return "|".join(template.replace(",", "").lower() for template in templates)


FORMS = {form: meaning for domain in (POSTS, NEWS) for form, meaning in all_forms(domain)}
SUBJECTS = {subject.lower(): subject for domain in (POSTS, NEWS) for subject in domain.subjects}
SUBJECT = re.compile(
    rf"\b(?:my (?=(?:{'|'.join(POSTS.roles)})\b)|the (?=(?:{'|'.join(NEWS.roles)})\b))?(?P<who>{'|'.join(SUBJECTS)})\b"
)
OPENER = re.compile(rf"^(?:{phrases(POSTS.openers + NEWS.openers)}) ")
TAIL = re.compile(rf" (?:{phrases(POSTS.tails + NEWS.tails)})$")


class SummaryParts(NamedTuple):
    """What a labeller weighs.

    Args:
        accuracy: (facts stated that are in the document − facts that are not) / facts stated, in [-1, 1]; 0 for none.
        coverage: Share of the document's main facts that are stated, in [0, 1]; 0 for a document without facts.
        length: Words, commas and periods.
    """

    accuracy: float
    coverage: float
    length: int


def summary_parts(document: str, summary: str) -> SummaryParts:
    """Return what is good and bad about a summary. A fact said twice counts once; copying is neither good nor bad."""
    said, known, main = facts_in(summary), facts_in(document), main_facts(document)
    right, wrong = len(said & known), len(said - known)
    return SummaryParts(
        accuracy=(right - wrong) / max(len(said), 1),
        coverage=len(said & main) / max(len(main), 1),
        length=len(tokens(summary)),
    )


class SummaryScorer:
    """accuracy + `coverage_weight` · coverage − `token_cost` · length (+ noise) of each completion for its prompt.

    The document's facts are read from the prompt itself; a prefix or a "TL;DR:" in it states nothing. A copied
    sentence is accurate and costs no more than its length, as with the paper's labellers. Noise is drawn from `seed`
    and the record's own text, so that a record's score does not depend on order, batch or process.

    Args:
        coverage_weight (`float`, *optional*, defaults to `1.0`): worth of stating all main facts.
        token_cost (`float`, *optional*, defaults to `0.01`): price of a token.
        noise (`float`, *optional*, defaults to `0.0`): standard deviation of Gaussian noise, in units of the score.
        seed (`int`, *optional*, defaults to `0`): seed of the noise; labellers who disagree by chance need two seeds.

    Example:

    ```python
    >>> SummaryScorer()(["Hi all. So Anna bought a car. Anna moved to Rome."], [" Anna got a new car."])
    [1.44]
    ```
    """

    __name__ = "summary_truth"  # TRL's trainers log a reward function under its name

    def __init__(
        self, *, coverage_weight: float = 1.0, token_cost: float = 0.01, noise: float = 0.0, seed: int = 0
    ) -> None:
        for name, value in {"coverage_weight": coverage_weight, "token_cost": token_cost, "noise": noise}.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a finite number of at least 0; 0 leaves it out.")
        self.coverage_weight = coverage_weight
        self.token_cost = token_cost
        self.noise = noise
        self.seed = seed

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Return the score of each completion, in order; columns do not matter."""
        pairs = zip(prompts, completions, strict=True)
        return [self.score(plain_text(prompt), plain_text(completion)) for prompt, completion in pairs]

    def score(self, document: str, summary: str) -> float:
        """The score of one summary."""
        parts = summary_parts(document, summary)
        value = parts.accuracy + self.coverage_weight * parts.coverage - self.token_cost * parts.length
        if self.noise > 0.0:
            value += random.Random(repr((self.seed, document, summary))).gauss(0.0, self.noise)
        return value
