"""`python -m trl_ziegler.label`: what it prints, makes and refuses. tests/test_label_page_live.py serves with it."""

import json
import socket
import stat
import subprocess
import sys

import pytest
from label_records import answer_all, records

from trl_ziegler import label
from trl_ziegler.labelers.human import LabelStore


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "labels.db")


@pytest.fixture
def served(monkeypatch):
    """Instead of serving, the application and its address."""
    calls = []

    class Server:
        address = "http://127.0.0.1:8300/"

        def __init__(self, app, host, port, proxy):
            calls.append((app, host, port, proxy))

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def run(self):
            calls.append("run")

    monkeypatch.setattr(label, "Server", Server)
    return calls


def run(capsys, *arguments: str) -> str:
    label.main(arguments)
    return capsys.readouterr().out


class TestActs:
    def test_labellers_get_tokens_that_work(self, capsys, path):
        lines = run(capsys, "--store", path, "--add_labeller", "ann", "bob b").splitlines()
        with LabelStore(path) as store:
            assert [store.authenticate(line.split("\t")[1]) for line in lines] == ["ann", "bob b"]
            name, token = run(capsys, "--store", path, "--replace_token", "ann").strip().split("\t")
            assert (name, store.authenticate(token), store.authenticate(lines[0].split("\t")[1])) == (
                "ann",
                "ann",
                None,
            )

    def test_files_come_in_and_go_out(self, capsys, path, tmp_path):
        lines = [json.dumps(record) for record in records(3, task="sentiment") + records(2, task="tldr")]
        (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
        said = run(capsys, "--store", path, "--import", str(tmp_path / "in.jsonl"))
        assert said == "Added 5 comparisons and 0 answers.\n"
        with LabelStore(path) as store:
            store.add_labeller("ann")
            answer_all(store, "ann", label=3)
        said = run(capsys, "--store", path, "--export", str(tmp_path / "all.jsonl"))
        assert said == f"Wrote 5 comparisons and 5 answers to {tmp_path / 'all.jsonl'}.\n"
        run(capsys, "--store", path, "--export", str(tmp_path / "one.jsonl"), "--task", "tldr")
        rows = {name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
                for name in ("all.jsonl", "one.jsonl")}  # fmt: skip
        assert [row["label"] for row in rows["all.jsonl"]] == [3] * 5
        assert [row["task"] for row in rows["one.jsonl"]] == ["tldr"] * 2

    def test_an_export_overwrites_a_file_only_on_request(self, capsys, path, tmp_path):
        file = tmp_path / "all.jsonl"
        file.write_text("mine")
        with LabelStore(path) as store:
            store.add(records(1))
        with pytest.raises(SystemExit, match=r"all\.jsonl is there already; give another name, or add --overwrite"):
            run(capsys, "--store", path, "--export", str(file))
        assert file.read_text() == "mine"
        run(capsys, "--store", path, "--export", str(file), "--overwrite")
        assert json.loads(file.read_text())["prompt"] == "Prompt 0"

    @pytest.mark.parametrize(
        "arguments", [["--export", "x.jsonl"], ["--task", "tldr"], ["--replace_token", "ann"], ["--import", "x.jsonl"]]
    )
    def test_a_mistyped_store_is_not_made(self, path, tmp_path, monkeypatch, arguments):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"There is no label store at|`--import` x\.jsonl is not there"):
            label.main(["--store", path, *arguments])
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def empty(path):
    """A store with nothing in it."""
    LabelStore(path).close()


@pytest.mark.usefixtures("empty")
class TestServing:
    def test_is_for_this_machine_unless_told(self, capsys, path, served):
        run(capsys, "--store", path, "--task", "sentiment")
        (_, host, port, proxy), ran = served
        assert (host, port, proxy, ran) == ("127.0.0.1", 8300, None, "run")
        out = run(capsys, "--store", path, "--task", "sentiment", "--host", "0.0.0.0", "--port", "0")
        assert served[2][1:] == ("0.0.0.0", 0, None) and "open to the network without encryption" in out

    def test_believes_a_proxy_that_is_named(self, capsys, path, served):
        run(capsys, "--store", path, "--task", "sentiment", "--proxy", "127.0.0.1")
        app, *_, proxy = served[0]
        assert proxy == "127.0.0.1" and app.config["SESSION_COOKIE_SECURE"]

    def test_says_where_the_page_and_the_researchers_token_are(self, capsys, path, served):
        out = run(capsys, "--store", path, "--task", "sentiment")
        assert "Labelling page: http://127.0.0.1:8300/\n" in out and f"token is in {path}.researcher-token" in out
        assert "no labellers; add them with --add_labeller NAME" in out and "network" not in out

    def test_the_researchers_token_is_made_once_and_for_its_owner_only(self, capsys, path, served, tmp_path):
        outs = [run(capsys, "--store", path, "--task", "tldr") for _ in range(2)]
        file = tmp_path / "labels.db.researcher-token"
        token = file.read_text().strip()
        assert len(token) >= 43 and stat.S_IMODE(file.stat().st_mode) == 0o600
        assert all(token not in out for out in outs)
        for app, *_ in served[::2]:
            client = app.test_client()
            csrf = client.get("/login").get_data(as_text=True).split('name="csrf" value="')[1].split('"')[0]
            reply = client.post("/login", data={"token": token, "csrf": csrf})
            assert reply.headers["Location"] == "/researcher"

    def test_the_researchers_token_can_be_ones_own(self, capsys, path, served, tmp_path):
        (tmp_path / "own").write_text("short\n")
        with pytest.raises(SystemExit, match="researcher_token has 5 characters; give at least 32"):
            run(capsys, "--store", path, "--task", "tldr", "--researcher_token", str(tmp_path / "own"))

    @pytest.mark.parametrize(
        ("task", "said"),
        [
            ("sentiment", "tldr (3 labels left)"),
            (None, "sentiment (2 labels left), tldr (3 labels left)"),
        ],
    )
    def test_names_the_comparisons_that_it_leaves_out(self, capsys, path, served, tmp_path, task, said):
        with LabelStore(path) as store:
            store.add([*records(3, task="tldr"), *records(2, task="sentiment"), *records(1)], repeats=1)
            store.add_labeller("ann")
        (tmp_path / "own.txt").write_text("Which is funnier?\n")
        asked = ["--instructions", str(tmp_path / "own.txt")] if task is None else ["--task", task]
        out = run(capsys, "--store", path, *asked)
        assert f"Left out, each for a page of its own (--task NAME, another --port): {said}.\n" in out

    def test_says_what_it_shows_without_knowing_its_task(self, capsys, path, served):
        with LabelStore(path) as store:
            store.add(records(2), repeats=2)
        out = run(capsys, "--store", path, "--task", "sentiment")
        assert "Shown though they name no task, so see that the question fits them: 4 labels left.\n" in out

    def test_takes_instructions_from_a_file(self, capsys, path, served, tmp_path):
        (tmp_path / "own.txt").write_text("Which is funnier?\n")
        run(capsys, "--store", path, "--instructions", str(tmp_path / "own.txt"))
        assert served[0][0].extensions["trl_ziegler_label"].instructions.question == "Which is funnier?"


@pytest.mark.usefixtures("empty")
class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--task", "jokes"], "the task 'jokes' comes without instructions; give a text file"),
            ([], "no `--task` is given; give a text file of your own, or one of the tasks"),
            (["--task", "tldr", "--instructions", "/nowhere/x.txt"], "`--instructions` /nowhere/x.txt is not there"),
            (["--import", "/nowhere/x.jsonl"], "`--import` /nowhere/x.jsonl is not there; correct the path"),
            (["--task", "tldr", "--host", "192.0.2.1"], "192.0.2.1 .*is no address of this machine"),
            (["--export", "/nowhere/x.jsonl"], "/nowhere/x.jsonl has no folder to lie in; make it or correct"),
            (["--task", "tldr", "--port", "99999"], "`--port` is 99999; give one from 0"),
            (["--task", "tldr", "--proxy", "localhost"], "`--proxy` is 'localhost'; give the proxy's IP address"),
            (["--add_labeller", " ann"], "labeller=' ann' is no name"),
            (["--replace_token", "eve"], "labeller='eve' is not known"),
        ],
    )
    def test_are_one_sentence(self, path, arguments, message):
        with pytest.raises(SystemExit, match=f"trl-ziegler-label: .*{message}"):
            label.main(["--store", path, *arguments])

    def test_a_port_that_is_taken_is_named(self, path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(SystemExit, match=rf"`--port` {port} is taken; give another, or 0 for any free one"):
                label.main(["--store", path, "--task", "tldr", "--port", str(port)])

    def test_stores_that_cannot_be(self, tmp_path):
        with pytest.raises(SystemExit, match="has no folder to lie in"):
            label.main(["--store", str(tmp_path / "nowhere" / "labels.db"), "--task", "tldr"])

    def test_a_server_needs_a_place_for_the_researchers_token(self):
        with pytest.raises(ValueError, match="say where with --researcher_token FILE"):
            label.default_token_file("postgresql://me@host/labels")

    @pytest.mark.parametrize(
        "arguments", [[], ["--store", "x", "--add_labeller", "a", "--export", "b"], ["--stor", "x"]]
    )
    def test_wrong_options(self, arguments, capsys):
        with pytest.raises(SystemExit):
            label.main(arguments)
        assert "usage: trl-ziegler-label" in capsys.readouterr().err


def test_loopback_addresses():
    assert all(map(label.is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(label.is_loopback, ["0.0.0.0", "::", "192.168.1.5", "example.org"]))


@pytest.mark.slow
def test_the_package_alone_imports_nothing_of_the_extra():
    code = "import sys, trl_ziegler; print({'flask', 'waitress', 'sqlalchemy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
