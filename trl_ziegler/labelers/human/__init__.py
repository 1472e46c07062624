"""Human labelling: the store of comparisons and answers, and its exchange formats. Needs the extra `label`.

`store.py` is the outline: add comparisons, hand them out under a lease, take answers, read labels. `content.py` says
what a comparison is and checks it, `schema.py` holds the tables, `database.py` opens SQLite or PostgreSQL,
`queries.py` holds the conditions that both share, `steps.py` the parts of a transaction, `summaries.py` what is read
out, `export.py` the files, `merge.py` how answers from a file join those of the store, `labeler.py` a labeller that
asks people through it.
"""

try:
    import sqlalchemy  # noqa: F401  (asked for here so that its absence is explained in one place)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The label store needs SQLAlchemy; install it with `pip install 'trl-ziegler[label]'`."
    ) from error

from .content import AGREEMENT_REPEATS, AGREEMENT_SHARE, comparison_id, display_order
from .export import (
    export_dataset,
    export_jsonl,
    export_openai,
    import_dataset,
    import_jsonl,
    import_openai,
)
from .labeler import HumanLabeler
from .schema import Answer, Comparison, Decision, StopRequest
from .steps import Added, Assignment
from .store import LabelStore
from .summaries import Counts, Progress

__all__ = [
    "AGREEMENT_REPEATS",
    "AGREEMENT_SHARE",
    "Added",
    "Answer",
    "Assignment",
    "Comparison",
    "Counts",
    "Decision",
    "HumanLabeler",
    "LabelStore",
    "Progress",
    "StopRequest",
    "comparison_id",
    "display_order",
    "export_dataset",
    "export_jsonl",
    "export_openai",
    "import_dataset",
    "import_jsonl",
    "import_openai",
]
