"""The labelling page's JSON interface: the acts of the pages, by bearer token."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient
from label_records import records
from label_visitor import RESEARCHER_TOKEN, Visitor

from trl_ziegler.labelers.human.page import create_app, read_instructions
from trl_ziegler.labelers.human.page.access import ATTEMPTS
from trl_ziegler.labelers.human.page.app import BODY_LIMIT
from trl_ziegler.labelers.human.page_client import PageClient

pytest_plugins = ("label_fixtures", "label_page_fixtures")


class Script:
    """A scripted labeller."""

    def __init__(self, client: FlaskClient, token: str):
        self.client = client
        self.headers = {"Authorization": f"Bearer {token}"}

    def get(self, act: str):
        reply = self.client.get(f"/api/{act}", headers=self.headers)
        return reply.status_code, reply.get_json()

    def post(self, act: str, **body):
        reply = self.client.post(f"/api/{act}", headers=self.headers, json=body)
        return reply.status_code, reply.get_json()


@pytest.fixture
def bob(app, store, ids) -> Script:
    return Script(app.test_client(), store.add_labeller("bob"))


class TestActs:
    def test_next_shows_a_comparison_and_not_where_it_comes_from(self, bob, store, ids):
        status, reply = bob.get("next")
        work = store.take("bob")
        assert (status, reply["expires_at"]) == (200, work.expires_at.isoformat())
        assert reply["comparison"] == {"id": ids[0], "prompt": "Prompt 0", "completions": work.shown}
        assert bob.get("next") == (status, reply)

    def test_answers_are_stored_in_the_original_order(self, bob, store, ids):
        for i, identity in enumerate(ids):
            work = bob.get("next")[1]["comparison"]
            place = work["completions"].index(f" answer {i}.2")
            assert bob.post("answer", comparison=work["id"], place=place, seconds=0.5)[0] == 200
            assert work["id"] == identity
        assert store.majority() == dict.fromkeys(ids, 2)
        assert bob.get("next") == (200, {"comparison": None, "expires_at": None})

    def test_an_answer_sent_again_is_the_same_answer(self, bob, ids):
        bob.get("next")
        first = bob.post("answer", comparison=ids[0], place=1, seconds=1)
        assert bob.post("answer", comparison=ids[0], place=1, seconds=9) == first
        status, reply = bob.post("answer", comparison=ids[0], place=2, seconds=1)
        assert status == 409 and "has answered comparison" in reply["error"]

    def test_skip_flag_undo_and_stop(self, bob, store, ids):
        bob.get("next")
        assert bob.post("answer", comparison=ids[0], skip="cannot say", seconds=1)[0] == 200
        bob.get("next")
        assert bob.post("answer", comparison=ids[1], flag="odd", seconds=1)[0] == 200
        assert [flag.reason for flag in store.flags()] == ["odd"]
        assert bob.post("undo")[1]["comparison"]["id"] == ids[1] and store.flags() == []
        assert bob.post("undo")[1]["comparison"]["id"] == ids[0]
        assert bob.post("undo")[0] == 409
        assert bob.post("stop", reason="all are insults")[0] == 200
        assert (store.stop_requested().labeller, store.stop_requested().reason) == ("bob", "all are insults")

    def test_progress(self, bob, ids):
        bob.get("next")
        bob.post("answer", comparison=ids[0], place=0, seconds=3)
        assert bob.get("progress") == (
            200, {"labels": 1, "skips": 0, "flags": 0, "retracted": 0, "median_seconds": 3.0, "remaining": 17},
        )  # fmt: skip

    def test_a_page_of_no_task_shows_only_what_names_none(self, store):
        store.add([*records(1, task="tldr"), *records(1)])
        app = create_app(store, researcher_token=RESEARCHER_TOKEN, instructions=read_instructions("tldr"))
        bob = Script(app.test_client(), store.add_labeller("bob"))
        work = bob.get("next")[1]["comparison"]
        assert store.comparison(work["id"]).task is None and bob.get("progress")[1]["remaining"] == 1
        bob.post("answer", comparison=work["id"], place=0, seconds=1)
        assert bob.get("next")[1]["comparison"] is None

    def test_comparisons_of_other_tasks_are_left_out(self, app, store):
        store.add(records(1, task="tldr"))
        assert Script(app.test_client(), store.add_labeller("bob")).get("next")[1]["comparison"] is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            ({"place": 0}, 400, "it needs"),
            ({"comparison": "x", "place": 0, "seconds": 1, "labeller": "ann"}, 400, "'labeller'"),
            ({"comparison": "x", "seconds": 1}, 409, "give exactly one"),
            ({"comparison": "x", "seconds": 1, "place": 0, "skip": "x"}, 409, "give exactly one"),
            ({"comparison": "x", "seconds": 1, "place": 0}, 409, "comparison_id='x' is not in the store"),
            ({"comparison": ["x"], "seconds": 1, "place": 0}, 409, "is not in the store"),
            ({"comparison": None, "seconds": 1, "place": 4}, 409, "place=4 points at no completion"),
            ({"comparison": None, "seconds": 1, "place": "1"}, 409, "place='1'"),
            ({"comparison": None, "seconds": 1, "place": True}, 409, "place=True"),
            ({"comparison": None, "seconds": float("nan"), "place": 1}, 409, "seconds=nan is no duration"),
            ({"comparison": None, "seconds": 604801, "place": 1}, 409, "seconds=604801 is longer than a login lasts"),
            ({"comparison": None, "seconds": "1", "place": 1}, 409, "seconds='1'"),
            ({"comparison": None, "seconds": 1, "flag": ""}, 409, "says nothing"),
            ({"comparison": None, "seconds": 1, "flag": 7}, 409, "flag"),
            ({"comparison": None, "seconds": 1, "skip": "x" * 2001}, 409, "say it in 2000"),
            ({"comparison": None, "seconds": 1, "skip": "\ud800"}, 409, "no valid Unicode"),
        ],
    )
    def test_wrong_answers_are_named(self, bob, store, ids, body, status, message):
        store.take("bob")
        body = {**body, "comparison": ids[0]} if body.get("comparison", "") is None else body
        got, reply = bob.post("answer", **body)
        assert (got, store.counts().labels) == (status, 0) and message in reply["error"]

    @pytest.mark.parametrize(
        ("data", "kind", "status"),
        [
            (b"{", "application/json", 400),
            (b"[]", "application/json", 400),
            (b"[" * 50_000, "application/json", 400),
            (b"\xff", "application/json", 400),
            (b"place=1", "application/x-www-form-urlencoded", 415),
            (b" " * (BODY_LIMIT + 1), "application/json", 413),
        ],
    )
    def test_wrong_bodies_are_named(self, bob, data, kind, status):
        reply = bob.client.post("/api/answer", headers=bob.headers, data=data, content_type=kind)
        assert reply.status_code == status and reply.get_json()["error"]

    @pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic Ym9iOng="}])
    @pytest.mark.parametrize("path", ["/api/next", "/api/progress"])
    def test_without_a_valid_token_nothing_is_shown(self, app, ids, header, path):
        reply = app.test_client().get(path, headers=header)
        assert reply.status_code == 401 and set(reply.get_json()) == {"error"}

    def test_a_cookie_is_no_token(self, ann, store, ids):
        assert ann.client.get("/api/next").status_code == 401
        body = {"comparison": ids[0], "place": 0, "seconds": 1}
        assert ann.client.post("/api/answer", json=body).status_code == 401
        assert store.counts().labels == 0

    def test_a_token_opens_no_page(self, bob):
        assert bob.client.get("/", headers=bob.headers).status_code == 303

    def test_a_replaced_token_is_refused(self, bob, store):
        store.replace_token("bob")
        assert bob.get("next")[0] == 401

    def test_many_wrong_tokens_make_an_address_wait(self, app, bob):
        guess = Script(app.test_client(), "wrong")
        for _ in range(ATTEMPTS):
            assert guess.get("next")[0] == 401
        assert guess.get("next")[0] == 429 and bob.get("next")[0] == 200

    def test_nobody_sees_the_work_of_others(self, app, bob, store, ids):
        bob.get("next")
        cyd = Script(app.test_client(), store.add_labeller("cyd"))
        assert cyd.post("answer", comparison=ids[0], place=0, seconds=1)[0] == 409

    def test_what_is_not_there_is_said_in_json(self, bob):
        assert bob.get("nowhere")[0] == 404 and bob.get("nowhere")[1]["error"]
        assert bob.get("answer")[0] == 405

    def test_pages_and_scripts_share_the_work_in_hand(self, app, store, ids):
        token = store.add_labeller("ann")
        page = Visitor(app).log_in(token)
        work = Script(app.test_client(), token).get("next")[1]["comparison"]
        assert page.hidden()["comparison"] == work["id"]
        assert page.texts() == [text.strip() for text in work["completions"]]


class TestClient:
    def test_a_reply_that_breaks_off_is_a_connection_error(self):
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
            pool.submit(reply_half, server)
            client = PageClient(f"http://127.0.0.1:{server.getsockname()[1]}", "token")
            with pytest.raises(ConnectionError, match="is no HTTP"):
                client.next()

    def test_an_address_that_is_none_is_refused(self):
        with pytest.raises(ValueError, match=r"address='labels\.db' is no page; give one like http"):
            PageClient("labels.db", "token")


def reply_half(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{")
