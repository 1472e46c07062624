"""The labelling page: people log in with a token, see a comparison, and choose with a key; scripts do it over HTTP.

`app.py` is the outline. `access.py` says who is asking, `desk.py` holds what pages and scripts share, `labelling.py`
has the labellers' pages, `api.py` the same acts as JSON, `researcher.py` the researcher's page, `standing.py` the
figures on it, `instructions.py` the texts in `texts/` that explain a task. `server.py` binds all of it to an address.
Needs the extra `label`. `python -m trl_ziegler.label` starts it.
"""

try:
    import flask  # noqa: F401  (asked for here so that its absence is explained in one place)
    import waitress  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"The labelling page needs Flask and waitress ({error.name} is missing); install them with "
        "`pip install 'trl-ziegler[label]'`."
    ) from error

from .app import create_app
from .instructions import Instructions, read_instructions
from .server import Server

__all__ = ["Instructions", "Server", "create_app", "read_instructions"]
