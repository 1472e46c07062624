"""The researcher's page: who sees it, the figures on it, and what is settled there."""

import pytest
from label_records import answer_all, records
from label_visitor import RESEARCHER_TOKEN, Visitor

from trl_ziegler.labelers.human.page import create_app
from trl_ziegler.labelers.human.page.standing import disagrees, read_standing

pytest_plugins = ("label_fixtures", "label_page_fixtures")


class TestResearcher:
    def test_page_is_refused_to_labellers(self, ann, store):
        assert ann.get("/researcher").status == 403 and "log in with the researcher" in ann.page
        ann.get("/")
        store.flag("ann", store.take("ann").comparison.id, "odd", seconds=1)
        for path in ("/researcher/decide", "/researcher/clear"):
            assert ann.post(path, flag=1, request=1, keep="yes", reason="x").status == 403
            ann.get("/")
        assert len(store.flags()) == 1

    def test_does_not_label(self, researcher, ids):
        assert researcher.get("/").reply.request.path == "/researcher"

    def test_sees_where_labelling_stands(self, researcher, store, ids):
        assert "No comparison has the labels of two people yet" in researcher.page
        assert "There are no labellers yet" in researcher.page
        for name, label in (("ann", 1), ("bob", 1)):
            store.add_labeller(name)
            answer_all(store, name, label=label, seconds=7.0)
        app = create_app(store, researcher_token=RESEARCHER_TOKEN, task="sentiment")
        page = " ".join(Visitor(app).log_in(RESEARCHER_TOKEN).page.split())
        for value, name in (
            ("6", "comparisons"), ("6", "with a label"), ("12", "labels given"), ("6", "labels left"),
            ("0", "set aside"), ("7.0 s", "median per answer"), ("100 %", "agreement of two labellers"),
            ("25 %", "by chance"), ("–", "Fleiss’ kappa"), ("6", "comparisons with two or more labels"),
        ):  # fmt: skip
            assert f"<dd>{value}</dd><dt>{name}</dt>" in page

    def test_settles_requests_to_stop(self, researcher, store):
        store.add_labeller("ann")
        request = store.request_stop("ann", "<b>insults</b>")
        assert "&lt;b&gt;insults&lt;/b&gt;" in researcher.get("/researcher").page
        assert "Not stored" in researcher.post("/researcher/clear", request=request.id, reason="").page
        assert "insults" not in researcher.post("/researcher/clear", request=request.id, reason="found it").page
        assert store.stop_requested() is None

    @pytest.mark.parametrize("keep", [True, False])
    def test_decides_on_flags(self, app, ann, store, keep):
        ann.post("/answer", flag="<i>odd</i>")
        researcher = Visitor(app).log_in(RESEARCHER_TOKEN)
        assert "&lt;i&gt;odd&lt;/i&gt;" in researcher.page
        assert "secret policy at step 4711" in " ".join(researcher.page.split())
        assert "<dd>1</dd><dt>set aside</dt>" in researcher.page
        researcher.post("/researcher/decide", keep="yes" if keep else "no", reason="seen")
        assert "None waits for a decision" in researcher.page
        assert f"<dd>{0 if keep else 1}</dd><dt>set aside</dt>" in researcher.page  # read anew after a decision
        assert store.counts().set_aside == (0 if keep else 1)

    @pytest.mark.parametrize("fields", [{"keep": "maybe"}, {"flag": "x"}, {"flag": "9" * 30}])
    def test_wrong_decisions_are_refused(self, researcher, ann, store, fields):
        ann.post("/answer", flag="odd")
        researcher.get("/researcher").post("/researcher/decide", **{"keep": "yes", "reason": "x", **fields})
        assert researcher.status == 400 and len(store.flags()) == 1


class TestStanding:
    def test_figures_are_those_of_the_task(self, store):
        store.add(records(3, task="sentiment"), repeats=2), store.add(records(5, task="tldr"), repeats=2)
        for name, label, seconds in (("ann", 1, 2.0), ("bob", 1, 4.0)):
            store.add_labeller(name)
            answer_all(store, name, label=label, seconds=seconds)
        standing = read_standing(store, "sentiment")
        assert (standing.counts.comparisons, standing.agreement["n"], standing.median_seconds) == (3, 3, 3.0)
        assert (standing.labellers[0].shared, standing.labellers[0].agreement) == (3, 1.0)
        assert read_standing(store, None).counts.comparisons == 8

    def test_who_disagrees_with_the_rest_is_marked(self, store):
        store.add(records(20), repeats=4)
        for name in ("ann", "bob", "cyd", "eve"):
            store.add_labeller(name)
            answer_all(store, name, label=3 if name == "eve" else 1)
        standing = read_standing(store, None)
        assert [row.disagrees for row in standing.labellers] == [False, False, False, True]
        page = Visitor(create_app(store, researcher_token=RESEARCHER_TOKEN, task="tldr")).log_in(RESEARCHER_TOKEN).page
        assert page.count("<em>disagrees with the rest</em>") == 1 and "<dd>-0.33</dd>" in page
        assert (standing.agreement["agreement"], standing.labellers[3].agreement) == (0.5, 0.0)

    def test_two_standard_errors_below_all_others_on_ten_comparisons(self):
        # the error of a share of 0.5 among 25 is 0.1
        assert disagrees(0.29, 0.5, 25) and not disagrees(0.31, 0.5, 25)
        assert disagrees(0.0, 0.5, 10) and not disagrees(0.0, 0.5, 9)
        assert not disagrees(0.9, 0.5, 100) and not disagrees(0.0, 0.5, 0)
