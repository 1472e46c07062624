"""The labelling page's command: `python -m trl_ziegler.label --store labels.db --task sentiment`.

Installed as `trl-ziegler-label` too. Needs the extra `label`: `pip install "trl-ziegler[label]"`. `--help` has the
steps from comparisons to labels; `trl_ziegler/labelers/human/page/api.py` documents the interface for scripts.
"""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from .labelers.human import LabelStore, export_jsonl, import_jsonl
from .labelers.human.page import Server, create_app, read_instructions
from .labelers.human.page.instructions import TASKS
from .labelers.human.summaries import remaining_by_task

if TYPE_CHECKING:
    from flask import Flask  # the page explains where it is missing

DESCRIPTION = """\
Serves a web page on which people choose the best of K completions, and keeps every answer in a label store.

From comparisons to labels:

  python -m trl_ziegler.label --store labels.db --import comparisons.jsonl
  python -m trl_ziegler.label --store labels.db --add_labeller ann bob
  python -m trl_ziegler.label --store labels.db --task sentiment
  python -m trl_ziegler.label --store labels.db --export labels.jsonl

The second command prints one access token per labeller, once. The third serves the page until it is interrupted;
answers are on the disk as soon as they are acknowledged, so it may be stopped and started at any time, also while
others read or add to the same store. The researcher's page (figures, flagged comparisons, requests to stop) is at
the same address, behind the token in the file of --researcher_token."""

EPILOG = """\
The page talks plain HTTP and is bound to this machine. For labellers elsewhere, keep it so and put a web server with
TLS in front of it (--proxy 127.0.0.1), or let them in by SSH (ssh -L 8300:127.0.0.1:8300 HOST); --host opens it to a
network as it is. Completions are shown as plain text, whatever they contain. Scripted labellers answer over
HTTP with the same tokens, for example by trl_ziegler.labelers.human.page_client.PageClient."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong with its arguments ends it with one sentence."""
    options = parser().parse_args(arguments)
    try:
        check_files(options)
        makes_store = bool(options.add_labeller or options.import_file)
        with LabelStore(options.store, create=makes_store) as store:
            act(store, options)
    except (ValueError, OSError) as error:
        sys.exit(f"trl-ziegler-label: {error}")


def check_files(options: argparse.Namespace) -> None:
    """Refuse files to read that are not there, and one to write that is or has no folder, before a store is made."""
    for name, path in (("import", options.import_file), ("instructions", options.instructions)):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"`--{name}` {path} is not there; correct the path.")
    if options.export_file is None:
        return
    file = Path(options.export_file)
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{file} has no folder to lie in; make it or correct the path.")
    if file.is_dir() or (file.exists() and not options.overwrite):
        raise ValueError(f"{file} is there already; give another name, or add --overwrite if it is a former export.")


def act(store: LabelStore, options: argparse.Namespace) -> None:
    """Do the one thing that the options ask for."""
    if options.add_labeller:
        for name in options.add_labeller:
            print(f"{name}\t{store.add_labeller(name)}")
    elif options.replace_token:
        for name in options.replace_token:
            print(f"{name}\t{store.replace_token(name)}")
    elif options.import_file:
        added = import_jsonl(store, options.import_file)
        print(f"Added {added.comparisons} comparisons and {added.answers} answers.")
    elif options.export_file:
        held = export_jsonl(store, options.export_file, task=options.task)
        print(f"Wrote {held.comparisons} comparisons and {held.answers} answers to {options.export_file}.")
    else:
        serve(store, options)


def serve(store: LabelStore, options: argparse.Namespace) -> None:
    """Serve the page until interrupted."""
    if not 0 <= options.port <= 65535:
        raise ValueError(f"`--port` is {options.port}; give one from 0 (any free one) to 65535.")
    if options.proxy is not None and not is_ip_address(options.proxy):
        raise ValueError(f"`--proxy` is {options.proxy!r}; give the proxy's IP address, such as 127.0.0.1.")
    instructions = read_instructions(options.task, options.instructions)
    token_file = options.researcher_token or default_token_file(options.store)
    token = read_or_make_token(token_file)
    tls = options.proxy is not None
    app = create_app(store, researcher_token=token, task=options.task, instructions=instructions, tls=tls)
    with listening(app, options) as server:
        print(f"Labelling page: {server.address}")
        print(f"The researcher's token is in {token_file}.")
        for note in notes(store, options):
            print(note)
        sys.stdout.flush()
        server.run()


def listening(app: Flask, options: argparse.Namespace) -> Server:
    """The server, its address taken."""
    try:
        return Server(app, options.host, options.port, options.proxy)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"`--port` {options.port} is taken; give another, or 0 for any free one.") from None
        if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            raise ValueError(f"`--host` {options.host} is no address of this machine; correct it.") from None
        raise


def notes(store: LabelStore, options: argparse.Namespace) -> list[str]:
    """What whoever starts the page should know about its store and address."""
    said = []
    if not store.progress():
        said.append("The store has no labellers; add them with --add_labeller NAME.")
    with store.reading() as session:
        left = remaining_by_task(session)
    unnamed = left.pop(None, 0)
    others = [f"{task} ({number} labels left)" for task, number in sorted(left.items()) if task != options.task]
    if others:
        said.append(f"Left out, each for a page of its own (--task NAME, another --port): {', '.join(others)}.")
    if options.task is not None and unnamed:
        said.append(f"Shown though they name no task, so see that the question fits them: {unnamed} labels left.")
    if not is_loopback(options.host):
        said.append("The page is open to the network without encryption; put TLS in front of it.")
    return said


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    return ip_address(host).is_loopback if is_ip_address(host) else host == "localhost"


def is_ip_address(text: str) -> bool:
    """Whether `text` is one, of either version."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def default_token_file(store: str) -> Path:
    """Beside an SQLite file; a database server has no such place."""
    if "://" in store:
        raise ValueError("A store on a server has no file to lie beside; say where with --researcher_token FILE.")
    return Path(f"{store}.researcher-token")


def read_or_make_token(path: str | os.PathLike) -> str:
    """The token in the file at `path`, which is made, readable by its owner only, if it is not there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return Path(path).read_text(encoding="utf-8").strip()
    token = secrets.token_urlsafe()
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")
    return token


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        "trl-ziegler-label",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--store",
        required=True,
        metavar="LOCATION",
        help="an SQLite file or postgresql://user@host/database (with its password in PGPASSWORD or ~/.pgpass); "
        "--import and --add_labeller make it if it is not there",
    )
    made.add_argument(
        "--task",
        help="show the comparisons of this task and those that name none; without it, only those that name none. "
        f"Instructions come with {', '.join(TASKS)}. With --export: write the comparisons of this task only",
    )
    _add_page_options(made.add_argument_group("the page"))
    group = made.add_argument_group("instead of the page", "The command does one of these and ends.")
    acts = group.add_mutually_exclusive_group()
    acts.add_argument(
        "--add_labeller", nargs="+", metavar="NAME", help="add labellers; prints each name with its token, once"
    )
    acts.add_argument(
        "--replace_token", nargs="+", metavar="NAME", help="give labellers other tokens; the former ones are dead"
    )
    acts.add_argument(
        "--import",
        dest="import_file",
        metavar="FILE",
        help="add comparisons from JSON lines: `prompt`, `completions`, and where known `task`, `source`, `step`, "
        "`repeats`; also an exported file, with its answers",
    )
    acts.add_argument(
        "--export",
        dest="export_file",
        metavar="FILE",
        help="write comparisons, all answers and the label by majority as JSON lines",
    )
    group.add_argument("--overwrite", action="store_true", help="let --export replace a file of this name")
    return made


def _add_page_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--instructions",
        metavar="FILE",
        help="a text of your own for labellers: the question in the first paragraph, then paragraphs and lists "
        "(lines that begin with '- '), separated by empty lines",
    )
    group.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    group.add_argument("--port", type=int, default=8300, help="port; 0 takes a free one (default: %(default)s)")
    group.add_argument(
        "--proxy",
        metavar="ADDRESS",
        help="IP address that a web server with TLS in front of the page connects from, 127.0.0.1 on this machine: "
        "whom it names in X-Forwarded-For and X-Forwarded-Proto is believed, and cookies go by TLS only",
    )
    group.add_argument(
        "--researcher_token",
        metavar="FILE",
        help="file with the researcher's token, made with a fresh one if it is not there "
        "(default: beside the store, LOCATION.researcher-token)",
    )


if __name__ == "__main__":
    main()
