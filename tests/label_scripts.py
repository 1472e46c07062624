"""Processes of their own for tests/test_label_database.py: `label_scripts.py WHAT LOCATION`."""

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

from label_records import answer_all, records

from trl_ziegler.labelers.human import LabelStore


def share_work(location: str) -> None:
    """Ten processes open the store, bring the same comparisons, and answer until nothing is left; print the ids."""
    # Forked, so that the libraries are imported once.
    with multiprocessing.get_context("fork").Pool(10) as pool:
        done = pool.starmap(open_and_answer, [(location, f"labeller {i}") for i in range(10)], chunksize=1)
    print(*(comparison for ids in done for comparison in ids), sep="\n")


def open_and_answer(location: str, name: str) -> list[str]:
    with LabelStore(location) as store:
        store.add(records(60), repeats=1)
        store.add_labeller(name)
        return answer_all(store, name)


def answer_until_killed(location: str) -> None:
    """Four labellers answer at once; each answer is printed once it has been acknowledged."""
    with LabelStore(location) as store, ThreadPoolExecutor(4) as pool:
        store.add(records(400), repeats=1)
        list(pool.map(lambda name: answer_and_print(store, name), ["a", "bb", "ccc", "dddd"]))


def answer_and_print(store: LabelStore, name: str) -> None:
    store.add_labeller(name)
    while (work := store.take(name)) is not None:
        given = store.answer(name, work.comparison.id, label=len(name) % 4, seconds=1)
        # One write per line, or a line of one thread would end up in that of another.
        sys.stdout.write(f"{given.id} {given.comparison_id} {given.label}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    {"share_work": share_work, "answer_until_killed": answer_until_killed}[sys.argv[1]](sys.argv[2])
