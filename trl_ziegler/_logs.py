"""What another library logs, held back until it is known whether it tells anything."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def held_back(name: str, phrase: str) -> Iterator[list[logging.LogRecord]]:
    """Keep records of the logger `name` that contain `phrase`, and log them at the end, also of an exception.

    Args:
        name: Of the logger itself; records of its children pass.
        phrase: What tells the records that are kept from those that pass.

    Yields:
        The records so far. Whoever finds that they tell nothing clears the list.
    """
    logger = logging.getLogger(name)
    records: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if phrase not in record.getMessage():
            return True
        records.append(record)
        return False

    logger.addFilter(keep)
    try:
        yield records
    finally:
        logger.removeFilter(keep)
        for record in records:
            logger.handle(record)
