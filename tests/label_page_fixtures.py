"""A labelling page on each database, for modules that use `label_fixtures` too."""

import pytest
from flask import Flask
from label_records import records
from label_visitor import RESEARCHER_TOKEN, Visitor

from trl_ziegler.labelers.human import LabelStore
from trl_ziegler.labelers.human.page import create_app


@pytest.fixture
def app(store: LabelStore) -> Flask:
    app = create_app(store, researcher_token=RESEARCHER_TOKEN, task="sentiment")
    app.testing = True  # an error of ours is raised, not shown
    return app


@pytest.fixture
def ids(store: LabelStore) -> list[str]:
    """Six comparisons that several people answer."""
    return store.add(records(6, task="sentiment", source="secret policy", step=4711), repeats=3).ids


@pytest.fixture
def ann(app: Flask, store: LabelStore, ids: list[str]) -> Visitor:
    """A labeller who has logged in."""
    return Visitor(app).log_in(store.add_labeller("ann"))


@pytest.fixture
def researcher(app: Flask) -> Visitor:
    return Visitor(app).log_in(RESEARCHER_TOKEN)
