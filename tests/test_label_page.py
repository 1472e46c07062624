"""The labelling page without a browser: who gets in, what is shown, what is stored, what is refused."""

import logging
import re
import secrets
import sys
import time

import pytest
from label_records import records
from label_visitor import HOSTILE, RESEARCHER_TOKEN, Visitor
from sqlalchemy import select

from trl_ziegler.labelers.human.page import Instructions, create_app, read_instructions
from trl_ziegler.labelers.human.page.access import ATTEMPTS
from trl_ziegler.labelers.human.page.app import BODY_LIMIT
from trl_ziegler.labelers.human.page.desk import MOST_LEFT, SESSION
from trl_ziegler.labelers.human.page.instructions import TASKS
from trl_ziegler.labelers.human.schema import Answer

pytest_plugins = ("label_fixtures", "label_page_fixtures")


ANSWERED = "You have already answered that one in another tab, and that answer stands. Z takes your last answer back."


def answers(store) -> list[Answer]:
    with store.reading() as session:
        return list(session.scalars(select(Answer).order_by(Answer.id)))


class TestLogin:
    def test_leads_to_the_first_comparison(self, ann):
        assert ann.reply.request.path == "/" and "Which continuation is the most positive and happy?" in ann.page
        assert "Prompt 0" in ann.page and sorted(ann.texts()) == [f"answer 0.{i}" for i in range(4)]

    @pytest.mark.parametrize("token", ["", "wrong", "ä", "\ud800", "x" * 5000])
    def test_wrong_tokens_stay_outside(self, app, store, ids, token):
        store.add_labeller("ann")
        visitor = Visitor(app).log_in(token.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        assert visitor.status == 403 and "This token is not valid" in visitor.page
        assert visitor.get("/").reply.request.path == "/login"

    @pytest.mark.parametrize("path", ["/", "/researcher"])
    def test_comes_before_everything(self, app, ids, path):
        visitor = Visitor(app).get(path)
        assert visitor.reply.request.path == "/login" and "Prompt" not in visitor.page

    def test_many_wrong_tokens_make_an_address_wait(self, app):
        visitor = Visitor(app)
        for _ in range(ATTEMPTS):
            assert visitor.log_in("wrong").status == 403
        visitor.log_in("wrong")
        assert visitor.status == 429 and visitor.reply.headers["Retry-After"] == "60"
        assert app.test_client().get("/api/next", headers={"Authorization": "Bearer wrong"}).status_code == 429

    def test_wrong_tokens_lock_nobody_out_who_has_a_right_one(self, app, store, ids):
        """All people behind one proxy have its address."""
        for _ in range(ATTEMPTS + 1):
            Visitor(app).log_in("wrong")
        token = store.add_labeller("ann")
        assert Visitor(app).log_in(token).reply.request.path == "/"
        assert Visitor(app).log_in(RESEARCHER_TOKEN).reply.request.path == "/researcher"
        assert app.test_client().get("/api/next", headers={"Authorization": f"Bearer {token}"}).status_code == 200

    def test_wrong_tokens_are_forgotten_after_a_while(self, app, monkeypatch):
        visitor = Visitor(app)
        for _ in range(ATTEMPTS + 1):
            visitor.log_in("wrong")
        later = time.monotonic() + 61
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert visitor.log_in("wrong").status == 403

    def test_ends_when_the_token_is_replaced(self, ann, store):
        store.replace_token("ann")
        ann.post("/answer", place=0)
        assert ann.reply.request.path == "/login" and answers(store) == []

    def test_logging_out_ends_the_session(self, ann):
        assert ann.post("/logout").reply.request.path == "/login"
        assert ann.get("/").reply.request.path == "/login"

    def test_outlives_the_server(self, ann, store):
        name = ann.client.application.config["SESSION_COOKIE_NAME"]
        cookie = ann.client.get_cookie(name).value
        for token, status in ((RESEARCHER_TOKEN, 200), (RESEARCHER_TOKEN[::-1], 303)):
            restarted = create_app(store, researcher_token=token, task="sentiment")
            client = restarted.test_client()
            client.set_cookie(restarted.config["SESSION_COOKIE_NAME"], cookie)
            assert client.get("/").status_code == status

    def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(self, app):
        cookie = app.test_client().get("/login").headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Secure" not in cookie

    def test_the_cookie_goes_by_tls_only_where_there_is_tls(self, store):
        app = create_app(store, researcher_token=RESEARCHER_TOKEN, task="sentiment", tls=True)
        assert "Secure;" in app.test_client().get("/login").headers["Set-Cookie"]

    def test_no_token_is_logged(self, app, store, ids, caplog):
        caplog.set_level(logging.DEBUG)
        token = store.add_labeller("ann")
        visitor = Visitor(app).log_in(token)
        visitor.post("/answer", place=1)
        Visitor(app).log_in("a wrong token"), Visitor(app).log_in(RESEARCHER_TOKEN)
        app.test_client().get("/api/next", headers={"Authorization": f"Bearer {token}"})
        for secret in (token, "a wrong token", RESEARCHER_TOKEN):
            assert secret not in caplog.text and secret not in visitor.page

    def test_a_short_token_for_the_researcher_is_refused(self, store):
        with pytest.raises(ValueError, match="researcher_token has 6 characters; give at least 32 random ones"):
            create_app(store, researcher_token="secret", task="sentiment")


class TestComparison:
    def test_hostile_texts_are_only_text(self, app, store):
        store.add([{"prompt": "<b>She</b> was", "completions": HOSTILE, "task": "sentiment"}], repeats=1)
        page = Visitor(app).log_in(store.add_labeller("<i>eve</i>"))
        assert sorted(page.texts()) == sorted(HOSTILE)
        assert "&lt;b&gt;She&lt;/b&gt; was" in page.page and "&lt;i&gt;eve&lt;/i&gt;" in page.page
        assert page.page.count("<script") == 1 and "<img" not in page.page and "<h1>Press" not in page.page

    def test_chats_are_shown_by_message(self, app, store):
        prompt = [{"role": "user", "content": "A story, please."}, {"role": "<b>tool</b>", "content": [{"text": "x"}]}]
        chats = [[{"role": "assistant", "content": f"Story {i}", "tool_calls": None}] for i in range(2)]
        chats[1][0]["tool_calls"] = [{"name": "search"}]
        store.add([{"prompt": prompt, "completions": chats}], repeats=1)
        page = Visitor(app).log_in(store.add_labeller("ann")).page
        assert "A story, please." in page and "&lt;b&gt;tool&lt;/b&gt;" in page and "Story 0" in page
        assert "&#34;name&#34;: &#34;search&#34;" in page and "&#34;text&#34;: &#34;x&#34;" in page

    def test_texts_of_spaces_are_said_to_be_so(self, app, store):
        store.add([{"prompt": "She", "completions": [" \n", " was"]}], repeats=1)
        assert "(nothing but spaces)" in Visitor(app).log_in(store.add_labeller("ann")).page

    def test_says_nothing_about_where_texts_come_from(self, ann):
        assert "secret policy" not in ann.page and "4711" not in ann.page

    def test_ten_have_keys_and_further_ones_a_button(self, app, store):
        store.add(records(1, k=12, task="sentiment"), repeats=1)
        page = Visitor(app).log_in(store.add_labeller("ann")).page
        keys = re.findall(r'<button name="place" value="(\d+)"[^>]*?data-key="(\d)"', page)
        assert keys == [(str(place), str((place + 1) % 10)) for place in range(10)]
        assert '<button name="place" value="11"' in page

    def test_those_of_other_tasks_are_left_out(self, app, store):
        store.add(records(2, task="tldr"), repeats=1)
        page = Visitor(app).log_in(store.add_labeller("ann")).page
        assert "Nothing to label at the moment" in page and "left for you" not in page

    def test_shows_instructions_until_the_first_answer(self, ann):
        assert '<details class="instructions" open>' in ann.page
        assert '<details class="instructions">' in ann.post("/answer", place=0).page

    def test_shows_progress_own_speed_and_what_is_left_for_whom_it_tells(self, app, ann, store):
        """Each of the six wants three labels; what others say takes nothing from ann until one has all it wants."""
        assert '<b id="left">6</b> left for you' in ann.page
        for number, seconds in enumerate(("4", "6", "11"), start=1):
            ann.post("/answer", place=0, seconds=seconds)
            assert f'<b id="left">{6 - number}</b> left for you' in ann.page
        assert '<b id="answered">3</b>' in ann.page and "<b>6.0 s</b> per answer" in ann.page
        bob = Visitor(app).log_in(store.add_labeller("bob"))
        assert '<b id="left">6</b>' in bob.page
        assert '<b id="left">4</b>' in ann.post("/undo").page

    def test_many_are_not_counted_to_the_last(self, app, store):
        store.add(records(MOST_LEFT + 2), repeats=1)
        assert '<b id="left">over 1000</b> left' in Visitor(app).log_in(store.add_labeller("ann")).page

    def test_ends_when_all_is_answered(self, ann, ids):
        for _ in ids:
            ann.post("/answer", place=0)
        assert "Nothing to label at the moment" in ann.page
        assert "Prompt 5" in ann.post("/undo").page


class TestAnswers:
    def test_are_stored_in_the_original_order(self, app, store, ids):
        orders = set()
        for name in ("ann", "bob", "cyd"):
            visitor = Visitor(app).log_in(store.add_labeller(name))
            for number in range(6):
                texts = visitor.texts()
                orders.add(tuple(text[-1] for text in texts))
                visitor.post("/answer", place=texts.index(f"answer {number}.2"))
        assert [answer.label for answer in answers(store)] == [2] * 18
        assert len(orders) > 6

    def test_have_the_time_that_the_script_measured(self, ann, store):
        ann.post("/answer", place=0, seconds="4.217")
        assert answers(store)[0].seconds == 4.217

    def test_have_the_servers_time_without_a_script(self, ann, store):
        shown_at = time.time() - 30
        ann.post("/answer", place=0, shown_at=str(shown_at))
        assert 30 <= answers(store)[0].seconds <= time.time() - shown_at

    def test_take_no_longer_than_a_login_lasts(self, ann, store):
        ann.post("/answer", place=0, seconds="1e9")
        ann.post("/answer", place=0, shown_at="0")
        assert [answer.seconds for answer in answers(store)] == [SESSION.total_seconds()] * 2

    def test_sent_twice_count_once(self, ann, store):
        first = ann.hidden()
        ann.post("/answer", place=1)
        ann.post("/answer", place=1, comparison=first["comparison"])
        assert len(answers(store)) == 1 and "Prompt 1" in ann.page

    def test_against_ones_own_are_refused_in_the_labellers_words(self, ann, store):
        first = ann.hidden()
        ann.post("/answer", place=1)
        ann.post("/answer", place=2, comparison=first["comparison"])
        assert len(answers(store)) == 1 and f'<p class="message" role="status">{ANSWERED}</p>' in ann.page

    def test_skip(self, ann, store):
        assert "Prompt 1" in ann.post("/answer", skip="cannot say").page
        assert (answers(store)[0].kind, answers(store)[0].reason) == ("skip", "cannot say")

    def test_flag(self, ann, store):
        assert "Prompt 1" in ann.post("/answer", flag="it is in French").page
        assert [flag.reason for flag in store.flags()] == ["it is in French"]
        assert "Not stored" in ann.post("/answer", flag="   ").page and len(store.flags()) == 1
        assert "say it in 2000" in ann.post("/answer", flag="x" * 2001).page and len(store.flags()) == 1

    def test_undo_shows_the_comparison_again(self, ann, store):
        ann.post("/answer", place=0)
        assert "Prompt 1" in ann.page
        ann.post("/undo")
        assert "Prompt 0" in ann.page and store.counts().labels == 0
        assert "You have no answer left to take back." in ann.post("/undo").page

    def test_undo_marks_the_former_choice(self, ann):
        chosen = ann.texts()[2]
        assert "Before" not in ann.page
        ann.post("/answer", place=2).post("/undo")
        (marked,) = re.findall(r'<li class="former">(.*?)</li>', ann.page, re.DOTALL)
        assert chosen in marked and '<span class="hint">Before</span>' in marked
        assert "Before" not in ann.post("/answer", skip="cannot say").post("/undo").page

    def test_undo_leaves_alone_what_another_page_asked(self, ann, store):
        other = store.add(records(1, task="tldr"), repeats=1).ids[0]
        store.take("ann", task="tldr")
        store.answer("ann", other, label=1, seconds=1)
        assert "You have no answer left to take back." in ann.post("/undo").page and store.counts().labels == 1

    @pytest.mark.parametrize(
        "fields",
        [{"place": "4"}, {"place": "-1"}, {"place": "1", "skip": "x"}, {}, {"place": "1", "seconds": "nan"},
         {"place": "1", "comparison": "0" * 64}, {"place": "1", "comparison": None}, {"place": "1", "seconds": "x"},
         {"place": "١"}, {"place": "1", "seconds": None, "shown_at": None}],
    )  # fmt: skip
    def test_wrong_forms_store_nothing(self, ann, store, fields):
        ann.post("/answer", **fields)
        assert ("Not stored" in ann.page and ann.status == 200) or ann.status == 400
        assert answers(store) == []

    def test_long_refusals_fit_into_the_cookie(self, ann):
        noise = secrets.token_hex(10_000)  # what repeats itself would be packed
        assert "Not stored" in ann.post("/answer", place=1, comparison=noise).page


class TestTheCord:
    def test_anybody_can_pull_it(self, ann, store):
        ann.post("/stop", reason="All texts are <b>abusive</b>")
        assert (store.stop_requested().labeller, store.stop_requested().reason) == (
            "ann",
            "All texts are <b>abusive</b>",
        )
        assert "The training run stops at its next update" in ann.page and "waits for the researcher" in ann.page

    def test_needs_a_reason(self, ann, store):
        assert "Not stored" in ann.post("/stop", reason=" ").page
        assert store.stop_requested() is None


class TestProtection:
    @pytest.mark.parametrize("path", ["/login", "/logout", "/answer", "/undo", "/stop"])
    @pytest.mark.parametrize("csrf", [None, "", "wrong", "ä"])
    def test_forms_of_other_sites_are_refused(self, ann, store, path, csrf):
        ann.post(path, place=0, reason="x", token="x", csrf=csrf)
        assert ann.status == 403 and "does not belong to your session" in ann.page
        assert answers(store) == [] and store.stop_requested() is None
        assert ann.get("/").reply.request.path == "/"

    def test_forms_of_somebody_elses_session_are_refused(self, app, ann, store):
        bob = Visitor(app).log_in(store.add_labeller("bob"))
        assert bob.post("/answer", place=0, csrf=ann.hidden()["csrf"]).status == 403

    def test_a_form_from_before_the_login_is_refused(self, app, store, ids):
        visitor = Visitor(app).get("/login")
        before = visitor.hidden()["csrf"]
        visitor.log_in(store.add_labeller("ann"))
        assert visitor.post("/answer", place=0, csrf=before).status == 403

    @pytest.mark.parametrize("path", ["/answer", "/login", "/stop"])
    def test_oversize_forms_are_refused(self, ann, path):
        assert ann.post(path, reason="x" * BODY_LIMIT).status == 413

    def test_forms_of_many_parts_are_refused(self, ann):
        data = {**ann.hidden(), **{f"field{i}": "x" for i in range(30)}}
        reply = ann.client.post("/answer", data=data, content_type="multipart/form-data")
        assert reply.status_code == 413

    @pytest.mark.parametrize("path", ["/login", "/", "/nowhere", "/static/page.css", "/static/page.js", "/api/next"])
    def test_every_answer_carries_the_headers(self, ann, path):
        headers = ann.get(path).reply.headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
        assert headers["Cache-Control"] == ("no-cache" if path.startswith("/static") else "no-store")

    def test_pages_load_nothing_from_elsewhere_and_hold_no_script(self, ann, researcher):
        for page in (ann.page, researcher.page, Visitor(ann.client.application).get("/login").page):
            sources = re.findall(r'(?:src|href|action)="([^"]*)"', page)
            assert sources and all(re.match(r"/(?!/)", source) for source in sources)
            assert re.search(r"<script(?! src=)|\son\w+=|<style|\sstyle=", page) is None

    def test_changes_need_a_form(self, ann):
        for path in ("/answer", "/undo", "/stop", "/logout", "/researcher/decide", "/api/undo"):
            assert ann.client.get(path).status_code in (401, 404, 405)


class TestInstructions:
    @pytest.mark.parametrize("task", TASKS)
    def test_of_every_task_ask_a_question_and_explain_it(self, task):
        instructions = read_instructions(task)
        assert instructions.question.startswith("Which ") and instructions.question.endswith("?")
        assert [block.is_list for block in instructions.blocks].count(True) == 1
        assert sum(len(line) for block in instructions.blocks for line in block.lines) > 500

    def test_the_papers_four_tasks_have_some(self):
        assert TASKS == ("cnndm", "descriptiveness", "sentiment", "tldr")

    def test_can_be_a_file(self, tmp_path, store):
        path = tmp_path / "own.txt"
        path.write_bytes(
            "\ufeffWhich is\nfunnier?\r\n\r\nLaugh.\r\n\r\n- Puns <b>count</b>\r\n  double.\r\n- Smiles.\r\n".encode()
        )
        instructions = read_instructions("jokes", path)
        assert instructions.question == "Which is funnier?"
        assert [(tuple(block.lines), block.is_list) for block in instructions.blocks] == [
            (("Laugh.",), False), (("Puns <b>count</b> double.", "Smiles."), True),
        ]  # fmt: skip
        store.add(records(1))
        app = create_app(store, researcher_token=RESEARCHER_TOKEN, task="jokes", instructions=instructions)
        page = Visitor(app).log_in(store.add_labeller("ann")).page
        assert "<h1>Which is funnier?</h1>" in page and "<li>Puns &lt;b&gt;count&lt;/b&gt; double.</li>" in page

    def test_wrong_ones_are_named(self, tmp_path, store):
        with pytest.raises(
            ValueError, match="the task 'jokes' comes without instructions; give a text file of your own"
        ):
            create_app(store, researcher_token=RESEARCHER_TOKEN, task="jokes")
        (tmp_path / "empty.txt").write_text("\n \n\n")
        with pytest.raises(ValueError, match=r"empty\.txt are empty; begin with the question"):
            read_instructions(None, tmp_path / "empty.txt")
        (tmp_path / "latin.txt").write_bytes("Größe?".encode("latin-1"))
        with pytest.raises(ValueError, match="save them as UTF-8"):
            read_instructions(None, tmp_path / "latin.txt")
        assert isinstance(read_instructions("tldr"), Instructions)


@pytest.mark.parametrize("module", ["flask", "waitress"])
def test_a_missing_extra_is_explained(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "trl_ziegler.labelers.human.page")
    with pytest.raises(ModuleNotFoundError, match=rf"{module} is missing\); install them with .*trl-ziegler\[label\]"):
        import trl_ziegler.labelers.human.page  # noqa: F401
