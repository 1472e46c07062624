"""Facts of the embedded world's posts and news: what can be said, in which forms, and how documents tell them.

A fact is (subject, relation, object), as in ("sister", "bought", "car"). Each relation has forms told in documents and
shorter ones for summaries: a form is a predicate ("bought a {o}"), or a clause with the subject in it ("a new {o} for
{s}"). The generators and the parser share these tables, so the two cannot drift apart. Written for this package.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .grammar import finish, lines, tokens

NAMES = "Anna Clara Ella Mary Nora Ruth Julia Emma Ben Jack Paul Peter Sam Tom".split()
ROLES = "mother father sister brother neighbor son daughter uncle aunt cousin roommate boss".split()
INSTITUTIONS = (
    "mayor minister company airline bank museum school hospital factory club police court council theater zoo railway"
).split()
OBJECTS = {
    "things": "car bike phone laptop guitar ring wallet camera".split(),
    "cities": "Paris London Rome Madrid Dublin Boston Chicago Denver".split(),
    "jobs": "nurse teacher driver cook waiter lawyer baker pilot".split(),
    "pets": "cat dog parrot rabbit turtle pony hamster goat".split(),
    "courses": "French chess law history chemistry music math Spanish".split(),
    "events": "wedding party concert dinner flight interview funeral holiday".split(),
    "limbs": "leg arm foot wrist knee shoulder".split(),
    "secrets": "money debt letter accident test plan".split(),
    "numbers": "ten twenty thirty forty fifty sixty seventy eighty".split(),
    "partners": "Robert Daniel Frank Oliver Hugo Simone Martha Rosa".split(),
    "works": "bridges stadiums towers parks tunnels stations roads markets".split(),
    "goods": "milk bread toys shoes trucks candles knives apples".split(),
    "shows": "festivals elections matches parades strikes races fairs auctions".split(),
    "rivals": "Adams Carter Evans Lewis Moore Nelson Parker Turner".split(),
}
POST_RELATIONS = """
bought | things | bought a {o}; spent a lot of money on a {o} | got a new {o}; a new {o} for {s}
lost | things | lost a {o}; left a {o} on the train | the {o} of {s} is gone; can not find a {o}
broke | things | broke a {o}; dropped a {o} on the floor | a {o} was broken by {s}; damaged a {o}
sold | things | sold a {o}; gave away a {o} for cash | a {o} was sold by {s}; has no {o} any more
stole | things | stole a {o}; took a {o} without asking | a {o} was stolen by {s}; is a {o} thief
moved | cities | moved to {o}; rented a flat in {o} | lives in {o} now; {o} is the new home of {s}
visited | cities | went to {o} for a week; took a train to {o} | visited {o}; {o} was visited by {s}
became | jobs | became a {o}; found work as a {o} | is a {o} now; new job as a {o} for {s}
quit | jobs | stopped working as a {o}; lost the job as a {o} | is no longer a {o}; no more work as a {o} for {s}
adopted | pets | adopted a {o}; brought home a {o} | has a {o} now; a {o} lives with {s}
failed | courses | failed the {o} exam; got a bad grade in {o} | did not pass {o}; {o} was too hard for {s}
studied | courses | signed up for a {o} class; started to learn {o} | takes {o} lessons; {o} lessons for {s}
cancelled | events | cancelled the {o}; called off the {o} | stopped the {o}; the {o} was cancelled by {s}
missed | events | missed the {o}; came too late for the {o} | was not at the {o}; the {o} went on without {s}
hurt | limbs | hurt a {o}; fell on a {o} | has a bad {o}; the {o} of {s} is hurt
owed | numbers | borrowed {o} dollars from me; got {o} dollars from me | owes me {o} dollars; {o} dollars went to {s}
won | numbers | won {o} dollars; made {o} dollars in a game | is {o} dollars richer; {o} dollars were won by {s}
lied | secrets | lied about the {o}; did not tell the truth about the {o} | hid the {o}; the {o} was hidden by {s}
married | partners | married {o}; said yes to {o} | is married to {o}; {o} is married now to {s}
left | partners | broke up with {o}; left {o} for good | is no longer with {o}; {o} was left by {s}
"""
NEWS_RELATIONS = """
opened | works | opened new {o}; built {o} for everybody | has new {o}; new {o} opened by {s}
closed | works | closed {o}; locked the gates of {o} | gave up {o}; {o} closed by {s}
planned | works | wants to build {o}; showed plans for {o} | plans {o}; {o} planned by {s}
banned | goods | banned {o}; stopped the sale of {o} | forbids {o}; {o} banned by {s}
raised | goods | raised the price of {o}; asked for more money for {o} | made {o} dear; {o} cost more because of {s}
hired | numbers | hired {o} workers; found work for {o} people | has {o} new workers; {o} workers hired by {s}
fired | numbers | fired {o} workers; sent {o} people home | cut {o} jobs; {o} workers fired by {s}
wasted | numbers | lost {o} million dollars; wasted {o} millions | is {o} million poorer; {o} million gone for {s}
office | cities | opened an office in {o}; sent a team to {o} | is in {o} now; {o} is a new home for {s}
deal | cities | signed a deal with {o}; shook hands with {o} | works with {o}; {o} deal for {s}
sued | rivals | sued {o}; took {o} to trial | is at law with {o}; {o} was sued by {s}
praised | rivals | praised {o}; thanked {o} in public | likes {o}; {o} was praised by {s}
cancelled | shows | cancelled {o}; called off {o} | stopped {o}; {o} cancelled by {s}
delayed | shows | delayed {o}; put off {o} for a year | {o} must wait for {s}; holds {o} later
"""
POST_OPENERS = """
so
then
last week
yesterday
on Sunday
a month ago
it turned out that
I found out that
everybody knows that
people told me that
"""
POST_TAILS = """
last month
this spring
without a word
after a long talk
for no good reason
two days ago
"""
NEWS_OPENERS = """
on Monday,
in the morning,
officials said that
it became known that
insiders told reporters that
"""
NEWS_TAILS = """
on Friday
this year
after a long debate
for the first time
before the summer
"""
POST_REMARKS = """
things | everyone had admired that {o}; I still think of that {o}; the {o} was not cheap
cities | {o} is far from here; we all dream of {o}
jobs | it is not easy to be a {o}; I do not know any other {o}
pets | the {o} makes a lot of noise; our home is too small for a {o}
courses | {o} is not easy; nobody here likes {o}
events | we had planned the {o} for months; the {o} meant a lot to me
limbs | the {o} was swollen for days; a doctor looked at the {o}
secrets | we never speak of the {o}; the {o} is all I think about
numbers | to us {o} dollars is a lot; I could use {o} dollars too
partners | I never trusted {o}; {o} was a good friend of mine
"""
NEWS_REMARKS = """
works | many people have strong views on {o}; most {o} are near the river
goods | shops are full of {o}; families buy a lot of {o}
numbers | the number {o} came as a surprise; last year it was not {o}
cities | {o} is an important partner; experts had warned about {o}
rivals | {o} did not reply; a lawyer of {o} was surprised
shows | tickets for {o} were sold out; {o} are held every year
"""
POST_ASKS = """
What should I do?
Any advice would help.
Am I wrong to be angry?
Please tell me what you think.
"""
NEWS_ASKS = """
Read the full story here.
Find out what comes next.
More pictures below.
See what readers say.
"""
ASIDE = 0.3  # chance of a fact about somebody else
REMARK = 0.5  # chance of a remark after a main fact
OPENER, TAIL, JOINED = 0.15, 0.15, 0.6  # chances in a document's sentence; a tail where there is no opener
KEPT, MINOR = 0.9, 0.2  # chances that a summary states a main fact, and one that is not
ASK = 0.5  # chance that it ends with a sentence that tells nothing, as many an author's does
COPIED, LINKED, HEADLINE = 0.3, 0.05, 0.4  # chances in a summary's sentence
SUMMARY_TOKENS, DOCUMENT_TOKENS = range(8, 27), range(24, 53)


class Fact(NamedTuple):
    """What a sentence says: `subject` and `object` are single words of this world, without article."""

    subject: str
    relation: str
    object: str


class Relation(NamedTuple):
    """How a relation is said, with slots `{s}` and `{o}`, its kind of object, and what is remarked about one."""

    name: str
    kind: str
    objects: list[str]
    told: list[str]
    short: list[str]
    remarks: list[str]


@dataclass(frozen=True)
class Domain:
    """Who and what a kind of document is about.

    Args:
        names: Subjects said as they are.
        roles: Subjects that take the determiner.
        determiner: "my" or "the".
        relations: What can be said of them.
        openers: Beginnings of a fact's sentence that add nothing to it.
        tails: Ends likewise.
        asks: What summaries may end with: sentences that tell nothing.
    """

    names: list[str]
    roles: list[str]
    determiner: str
    relations: list[Relation]
    openers: list[str]
    tails: list[str]
    asks: list[str]

    @cached_property
    def subjects(self) -> list[str]:
        """Names and roles."""
        return self.names + self.roles

    def phrase(self, subject: str) -> str:
        """A subject as it stands in a sentence: "Anna", "my sister"."""
        return subject if subject in self.names else f"{self.determiner} {subject}"

    def relation(self, fact: Fact) -> Relation:
        """The relation of a fact of this domain."""
        return next(row for row in self.relations if row.name == fact.relation)

    def draw(self, rng: random.Random, subject: str) -> Fact:
        """A fact about `subject`."""
        relation = rng.choice(self.relations)
        return Fact(subject, relation.name, rng.choice(relation.objects))

    def say(self, fact: Fact, form: str, headline: bool = False) -> str:
        """A clause: `fact` in one of its relation's forms; a headline that starts with its subject bares it."""
        if "{s}" in form:
            return form.format(s=self.phrase(fact.subject), o=fact.object)
        return f"{fact.subject if headline else self.phrase(fact.subject)} {form.format(o=fact.object)}"


def table(block: str) -> list[list[str]]:
    """The cells of a block."""
    return [[cell.strip() for cell in line.split("|")] for line in lines(block)]


def relations(block: str, remarks: str) -> list[Relation]:
    """The relations of a block (name | kind of object | told forms | short forms), with remarks by kind of object."""
    about = {kind: sentences.split("; ") for kind, sentences in table(remarks)}
    return [
        Relation(name, kind, OBJECTS[kind], told.split("; "), short.split("; "), about[kind])
        for name, kind, told, short in table(block)
    ]


POSTS = Domain(
    names=NAMES,
    roles=ROLES,
    determiner="my",
    relations=relations(POST_RELATIONS, POST_REMARKS),
    openers=lines(POST_OPENERS),
    tails=lines(POST_TAILS),
    asks=lines(POST_ASKS),
)
NEWS = Domain(
    names=[],
    roles=INSTITUTIONS,
    determiner="the",
    relations=relations(NEWS_RELATIONS, NEWS_REMARKS),
    openers=lines(NEWS_OPENERS),
    tails=lines(NEWS_TAILS),
    asks=lines(NEWS_ASKS),
)


def split_of(facts: Iterable[Fact]) -> str:
    """The only split with a document of just these main facts: 80 % train, 10 % valid, 10 % test."""
    text = " ".join(" ".join(fact) for fact in sorted(facts))
    return {0: "valid", 1: "test"}.get(zlib.crc32(text.encode()) % 10, "train")


class Told(NamedTuple):
    """A sentence of a document, the facts it states, and the sentences to follow it, which state nothing."""

    sentence: str
    facts: list[Fact]
    remarks: list[str]


class Document(NamedTuple):
    """A text, its sentences that state facts, in order, and the sentences of its reference summary."""

    text: str
    told: list[Told]
    summary: list[str]


def write(
    rng: random.Random, domain: Domain, split: str, paragraphs: Callable[[list[Told]], list[list[str]]]
) -> Document:
    """A document of 24 to 52 tokens with a reference summary; `paragraphs` sets what is told among other sentences."""
    while True:
        told = tell_all(rng, domain, split)
        text = "\n".join(" ".join(paragraph) for paragraph in paragraphs(told))
        if len(tokens(text)) in DOCUMENT_TOKENS:
            return Document(text, told, summarize(rng, domain, told))


def tell_all(rng: random.Random, domain: Domain, split: str) -> list[Told]:
    """The sentences of a document that state facts, a main one first: 2 or 3 main ones, at times one about another.

    All main facts are about one subject; two of them may share a sentence.
    """
    hero = rng.choice(domain.subjects)
    main = main_facts_of(rng, domain, hero)
    while split_of(main) != split:
        main = main_facts_of(rng, domain, hero)
    groups = [main[:2], main[2:]] if rng.random() < JOINED else [[fact] for fact in main]
    first, *rest = [tell(rng, domain, group, REMARK) for group in groups if group]
    if rng.random() < ASIDE:
        minor = domain.draw(rng, rng.choice([subject for subject in domain.subjects if subject != hero]))
        rest.append(tell(rng, domain, [minor], 0.0))
    rng.shuffle(rest)
    return [first, *rest]


def main_facts_of(rng: random.Random, domain: Domain, hero: str) -> list[Fact]:
    """2 or 3 facts about `hero` with objects of different kinds, so that none could be mistaken for another's."""
    wanted = rng.randint(2, 3)
    facts: dict[str, Fact] = {}
    while len(facts) < wanted:
        fact = domain.draw(rng, hero)
        facts.setdefault(domain.relation(fact).kind, fact)
    return list(facts.values())


def tell(rng: random.Random, domain: Domain, facts: list[Fact], remark_chance: float) -> Told:
    """A document's sentence stating facts about one subject, at times with an opener or a tail, or with a remark."""
    predicates = [rng.choice(domain.relation(fact).told).format(o=fact.object) for fact in facts]
    clause = f"{domain.phrase(facts[0].subject)} {' and '.join(predicates)}"
    if rng.random() < OPENER:
        clause = f"{rng.choice(domain.openers)} {clause}"
    elif rng.random() < TAIL:  # not both: "on Monday" and "on Friday" would not go together
        clause = f"{clause} {rng.choice(domain.tails)}"
    remarks = [finish(rng.choice(domain.relation(fact).remarks).format(o=fact.object)) for fact in facts]
    return Told(finish(clause), facts, [remark for remark in remarks if rng.random() < remark_chance])


def pick(rng: random.Random, block: str, n: int) -> list[str]:
    """`n` different sentences of a block that states nothing; a quotation begins with a capital too."""
    sentences = [finish(sentence) for sentence in rng.sample(lines(block), n)]
    return [re.sub(r'^"\w', lambda quote: quote[0].upper(), sentence) for sentence in sentences]


def summarize(rng: random.Random, domain: Domain, told: list[Told]) -> list[str]:
    """The sentences of a reference summary of 8 to 26 tokens: most main facts, at times a minor one, in brief.

    Some authors copy a sentence of their document. Everything a reference states is true.
    """
    while True:
        sentences = draft(rng, domain, told)
        if len(tokens(" ".join(sentences))) in SUMMARY_TOKENS:
            return sentences


def draft(rng: random.Random, domain: Domain, told: list[Told]) -> list[str]:
    """A summary of any length."""
    facts = [fact for sentence in told for fact in sentence.facts]
    hero = facts[0].subject
    chosen = [fact for fact in facts if fact.subject == hero and rng.random() < KEPT] or facts[:1]
    minor = [fact for fact in facts if fact.subject != hero]
    if minor and rng.random() < MINOR:
        chosen.append(rng.choice(minor))
    sentences: list[str] = []
    for group in linked(rng, chosen):
        copied = rng.random() < COPIED
        sentences.append(source(told, group[0]) if copied else brief(rng, domain, group))
    if rng.random() < ASK:
        sentences.append(rng.choice(domain.asks))
    return list(dict.fromkeys(sentences))


def linked(rng: random.Random, facts: list[Fact]) -> list[list[Fact]]:
    """Neighbouring facts about one subject, at times two in a group."""
    groups: list[list[Fact]] = []
    for fact in facts:
        if groups and len(groups[-1]) == 1 and groups[-1][0].subject == fact.subject and rng.random() < LINKED:
            groups[-1].append(fact)
        else:
            groups.append([fact])
    return groups


def brief(rng: random.Random, domain: Domain, facts: list[Fact]) -> str:
    """A summary's sentence: one clause, or one and a predicate, in forms that are never the document's."""
    first, *rest = facts
    clauses = [domain.say(first, form_of(rng, domain, first, clause=not rest), headline=rng.random() < HEADLINE)]
    clauses += [form_of(rng, domain, fact, clause=False).format(o=fact.object) for fact in rest]
    return finish(" and ".join(clauses))


def form_of(rng: random.Random, domain: Domain, fact: Fact, clause: bool) -> str:
    """A form for a summary; without `clause` a predicate."""
    return rng.choice([form for form in domain.relation(fact).short if clause or "{s}" not in form])


def source(told: list[Told], fact: Fact) -> str:
    """The document's sentence that states a fact."""
    return next(sentence.sentence for sentence in told if fact in sentence.facts)
