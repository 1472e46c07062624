"""The labelling page as a process of its own: ten at once, killed under load, and in a browser by keyboard."""

import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from label_records import records
from label_servers import PageProcess, served
from label_visitor import HOSTILE
from sqlalchemy import select

from trl_ziegler.labelers.human import Answer, LabelStore
from trl_ziegler.labelers.human.page_client import PageClient

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium")
NAMES = [f"labeller {i}" for i in range(10)]


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "labels.db")


def answer_in_turn(page: PageClient, all_here: threading.Barrier, given: list, then=lambda: None) -> None:
    """Once all have work, choose the completion named by the next of 0..3 until none is left; note what is counted."""
    work = page.next()
    all_here.wait(timeout=60)
    while work is not None:
        wanted = len(given) % 4
        place = next(i for i, text in enumerate(work["completions"]) if text.endswith(f".{wanted}"))
        given.append((page.answer(work["id"], place=place, seconds=0.01), work["id"], wanted))
        then()
        work = page.next()


def stored(store: LabelStore) -> dict[str, set]:
    """Number, comparison and original index of every label, by labeller."""
    with store.reading() as session:
        rows = list(session.scalars(select(Answer)))
    return {name: {(a.id, a.comparison_id, a.label) for a in rows if a.labeller == name} for name in NAMES}


def test_ten_labellers_at_once_are_all_counted(path):
    with LabelStore(path) as store:
        store.add(records(30, task="sentiment"), repeats=4)
        tokens = {name: store.add_labeller(name) for name in NAMES}
    given = {name: [] for name in NAMES}
    all_here = threading.Barrier(len(NAMES))
    with served(path) as page, ThreadPoolExecutor(10) as pool:
        clients = {name: PageClient(page.address, tokens[name]) for name in NAMES}
        list(pool.map(lambda name: answer_in_turn(clients[name], all_here, given[name]), NAMES))
        assert clients[NAMES[0]].progress()["labels"] == len(given[NAMES[0]])
    with LabelStore(path) as store:
        assert stored(store) == {name: set(given[name]) for name in NAMES}
        counts = store.counts()
        assert (counts.labels, counts.remaining) == (120, 0)
    assert all(given.values())


def test_killed_under_load_it_loses_no_acknowledged_answer(path):
    with LabelStore(path) as store:
        store.add(records(400, task="sentiment"), repeats=1)
        tokens = {name: store.add_labeller(name) for name in NAMES}
    given = {name: [] for name in NAMES}

    all_here, killing = threading.Barrier(len(NAMES)), threading.Lock()

    def until_the_end(name: str, page: PageProcess) -> str:
        def kill_at_forty() -> None:
            if sum(map(len, given.values())) >= 40 and killing.acquire(blocking=False):
                page.kill()

        try:
            answer_in_turn(PageClient(page.address, tokens[name]), all_here, given[name], kill_at_forty)
        except OSError:
            return "cut off"
        return "nothing left"

    with served(path) as page, ThreadPoolExecutor(10) as pool:
        assert list(pool.map(lambda name: until_the_end(name, page), NAMES)) == ["cut off"] * 10
    with LabelStore(path) as store:
        kept = stored(store)
    for name in NAMES:  # what was written without a reply may be there too, at most one of each
        assert set(given[name]) <= kept[name] and len(kept[name]) <= len(given[name]) + 1
    with served(path) as page, ThreadPoolExecutor(10) as pool:
        ends = list(pool.map(lambda name: until_the_end(name, page), NAMES))
    assert ends == ["nothing left"] * 10
    with LabelStore(path) as store:
        assert (store.counts().labels, store.counts().remaining) == (400, 0)


def test_refuses_over_http_what_it_refuses_in_tests(path):
    with LabelStore(path) as store:
        ids = store.add(records(1, task="sentiment")).ids
        token = store.add_labeller("ann")
    with served(path) as page:
        client = PageClient(page.address, token)
        with pytest.raises(PermissionError, match=r"refuses \(401\): The token is not valid"):
            PageClient(page.address, "wrong").next()
        with pytest.raises(ValueError, match=r"refuses \(409\): Comparison \w+ was never given to labeller='ann'"):
            client.answer(ids[0], place=0, seconds=1.0)
        assert client.next()["id"] == ids[0]
        with pytest.raises(ValueError, match="413"):
            client.stop("x" * 100_000)
        reply = post_in_chunks(page.address, token, 100_000)
        assert " 413 " in reply.splitlines()[0]
        assert client.answer(ids[0], skip="cannot say", seconds=1.0) == 1
        assert client.undo()["id"] == ids[0]
        assert client.stop("something is wrong") == 1
        assert token not in page.kill()
    with pytest.raises(OSError):
        client.next()


def post_in_chunks(address: str, token: str, size: int) -> str:
    """The reply to a body whose length the head does not tell."""
    url = urlsplit(address)
    head = f"POST /api/stop HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {token}\r\n"
    body = f"{size:x}\r\n{'x' * size}\r\n0\r\n\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(
            f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{body}".encode()
        )
        return connection.recv(4096).decode()


# ---- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no `chromium` on the path (Debian's package of this name)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """Somebody at a keyboard, and what their browser complains about or asks other hosts for."""

    def __init__(self, browser, address: str, **context):
        self.complaints: list[str] = []
        self.page = browser.new_context(**context).new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on(
            "request", lambda asked: asked.url.startswith(address) or self.complaints.append(f"asks for {asked.url}")
        )
        self.page.goto(address)
        self.page.wait_for_selector("#token:focus")

    def log_in(self, token: str) -> None:
        with self.page.expect_navigation():
            self.page.keyboard.type(token)
            self.page.keyboard.press("Enter")

    def ready(self) -> None:
        """The page listens to keys."""
        self.page.wait_for_selector("html[data-keys=ready]")

    def press(self, *keys: str) -> None:
        """Press keys that lead to another page."""
        with self.page.expect_navigation():
            for key in keys:
                self.page.keyboard.press(key)
        self.ready()

    def texts(self) -> list[str]:
        return self.page.locator(".completion").all_inner_texts()

    def fits(self) -> bool:
        """Nothing is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def answers(store: LabelStore) -> list[Answer]:
    with store.reading() as session:
        return list(session.scalars(select(Answer).order_by(Answer.id)))


def test_ten_people_label_by_keyboard_at_once(path, browser):
    with LabelStore(path) as store:
        hostile = {"prompt": "<script>document.title = 'owned'</script>", "completions": HOSTILE, "task": "sentiment"}
        store.add([hostile, *records(2, task="sentiment")], repeats=10)
        tokens = {name: store.add_labeller(name) for name in NAMES}
        with served(path) as page:
            people = {name: Person(browser, page.address) for name in NAMES}
            for name, person in people.items():
                person.log_in(tokens[name]), person.ready()
                assert sorted(person.texts()) == sorted(HOSTILE)
                assert person.page.title() == "Which continuation is the most positive and happy?" and person.fits()
            chosen = {name: [] for name in NAMES}
            for number, place in enumerate((3, 0, 2), start=1):
                for name, person in people.items():
                    chosen[name].append(person.texts()[place])
                    person.page.keyboard.press(str(place + 1))
                for person in people.values():
                    person.page.wait_for_selector(f'#answered:text-is("{number}")')
                    person.ready()
                assert store.counts().labels == 10 * number
            assert all("Nothing to label" in person.page.inner_text("h1") for person in people.values())
            assert [complaint for person in people.values() for complaint in person.complaints] == []
        first, *others = store.comparisons()
        for answer in answers(store):
            comparison = next(c for c in (first, *others) if c.id == answer.comparison_id)
            assert comparison.completions[answer.label].strip() in chosen[answer.labeller]
            assert 0.25 <= answer.seconds < 600


def test_every_act_has_its_key(path, browser):
    with LabelStore(path) as store:
        ids = store.add(records(8, task="sentiment"), repeats=1).ids
        token = store.add_labeller("ann")
        with served(path) as page:
            ann = Person(browser, page.address, viewport={"width": 390, "height": 844})
            ann.log_in(token), ann.ready()
            assert ann.fits()
            ann.press("s")
            ann.page.keyboard.press("f")
            ann.page.keyboard.type("1 2 s z f: keys in a text answer nothing")
            ann.press("Tab", "Enter")
            assert [(a.kind, a.reason) for a in answers(store)] == [
                ("skip", "cannot say"), ("flag", "1 2 s z f: keys in a text answer nothing"),
            ]  # fmt: skip
            ann.press("z")
            assert store.flags() == [] and "taken back" in ann.page.inner_text(".message")
            ann.page.keyboard.press("f"), ann.page.keyboard.press("Escape")
            chosen = ann.texts()[1]
            ann.press("2")
            assert [(a.comparison_id, a.label) for a in answers(store)][2:] == [(ids[1], int(chosen[-1]))]
            ann.page.keyboard.press("Control+1"), ann.page.keyboard.press("9")
            with ann.page.expect_navigation():
                ann.page.keyboard.down("1")
            for _ in range(20):  # held down, the key repeats into the next page
                ann.page.keyboard.down("1")
                ann.page.wait_for_timeout(25)
            ann.page.keyboard.up("1")
            assert len(answers(store)) == 4
            cord = ann.page.locator("#cord summary")
            cord.focus()
            ann.page.keyboard.press("Enter")
            ann.page.keyboard.type("they are all insults")
            with ann.page.expect_navigation():
                ann.page.keyboard.press("Tab"), ann.page.keyboard.press("Enter")
            assert store.stop_requested().reason == "they are all insults"
            assert ann.complaints == []


def test_a_click_on_a_text_chooses_it_and_a_selection_does_not(path, browser):
    with LabelStore(path) as store:
        store.add(records(2, task="sentiment"), repeats=1)
        with served(path) as page:
            ann = Person(browser, page.address)
            ann.log_in(store.add_labeller("ann")), ann.ready()
            box = ann.page.locator(".completion .text").nth(1).bounding_box()
            ann.page.mouse.move(box["x"] + 20, box["y"] + 20), ann.page.mouse.down()
            ann.page.mouse.move(box["x"] + 60, box["y"] + 20), ann.page.mouse.up()
            ann.page.locator(".completion").nth(2).click()  # takes the selection away
            assert answers(store) == []
            chosen = ann.texts()[2]
            with ann.page.expect_navigation():
                ann.page.locator(".completion").nth(2).click()
            assert [answer.label for answer in answers(store)] == [int(chosen[-1])]


def test_a_waiting_page_finds_further_work_and_leaves_alone_who_writes(path, browser):
    with LabelStore(path) as store, served(path) as page:
        ann = Person(browser, page.address)
        ann.page.clock.install()
        ann.log_in(store.add_labeller("ann"))
        assert "Nothing to label" in ann.page.inner_text("h1")
        store.add(records(1, task="sentiment"))
        ann.page.click("#cord summary")
        ann.page.keyboard.type("where is")
        ann.page.clock.run_for(21_000)
        assert ann.page.input_value("#cord-reason") == "where is"
        ann.page.keyboard.press("Escape")
        with ann.page.expect_navigation():
            ann.page.clock.run_for(21_000)
        assert len(ann.texts()) == 4


def test_works_without_javascript(path, browser):
    with LabelStore(path) as store:
        store.add(records(3, task="sentiment"), repeats=1)
        token = store.add_labeller("ann")
        with served(path) as page:
            ann = Person(browser, page.address, java_script_enabled=False)
            ann.log_in(token)
            chosen = ann.texts()[2]
            with ann.page.expect_navigation():
                ann.page.locator(".choices button").nth(2).click()
            ann.page.click("#flag summary")
            ann.page.fill("#flag-reason", "odd")
            with ann.page.expect_navigation():
                ann.page.click("#flag button")
            label, flag = answers(store)
            assert label.label == int(chosen[-1]) and 0 < label.seconds < 60 and flag.reason == "odd"


def test_an_answer_waits_for_a_server_that_is_away(path, browser):
    with LabelStore(path) as store:
        store.add(records(3, task="sentiment"), repeats=1)
        token = store.add_labeller("ann")
        with served(path) as page:
            ann = Person(browser, page.address)
            ann.log_in(token), ann.ready()
            chosen = ann.texts()[1]
        ann.page.keyboard.press("2")  # the server is gone
        ann.page.wait_for_selector("#away:visible")
        ann.page.keyboard.press("3")
        assert ann.texts()[1] == chosen and answers(store) == []
        with served(path, port=page.port):
            ann.page.wait_for_selector('#answered:text-is("1")')
            ann.ready()
            assert [answer.label for answer in answers(store)] == [int(chosen[-1])]
            assert ann.page.locator("#away:visible").count() == 0
        ann.page.keyboard.press("z")
        ann.page.wait_for_selector("#away:visible")
        with served(path, port=page.port):
            ann.page.wait_for_selector("#away", state="hidden")
            ann.ready()
        assert store.counts().labels == 1  # an undo is not sent twice


def test_a_refused_form_shows_why(path, browser):
    with LabelStore(path) as store:
        store.add(records(3, task="sentiment"), repeats=1)
        with served(path) as page:
            ann = Person(browser, page.address)
            ann.log_in(store.add_labeller("ann")), ann.ready()
            ann.page.evaluate("document.querySelectorAll('[name=csrf]').forEach((field) => { field.value = 'x'; })")
            ann.page.keyboard.press("1")
            ann.page.wait_for_selector("text=does not belong to your session")
            with ann.page.expect_navigation():
                ann.page.click("text=Back to the page")
            assert len(ann.texts()) == 4 and answers(store) == []
