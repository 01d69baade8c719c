"""Blames the file when a library fails on it.

Libraries raise whatever a hostile value provokes. They quote the value, which may be patient data,
in exceptions, warnings and log records. None of that leaves `blame_file`, once their logs are
silent.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason


def silence(*names: str) -> None:
    """Drops what libraries log, by the names of their loggers."""
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextmanager
def blame_file(reason: Reason, message: str) -> Iterator[None]:
    """Turns what a library raises about a file into FluoroError(reason, message).

    Its warnings are dropped. What is not about the file passes: FluoroError, CancelledAttempt,
    MemoryError, and OSError of the operating system (one with an errno). Keep the body to the
    library's calls: a bug of our own in it would be blamed on the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        # The caller's own signals: a cancel or a full memory says nothing about the file.
        except (FluoroError, CancelledAttempt, MemoryError):
            raise
        except Exception as error:
            # The operating system sets errno, for a full disk say. Libraries raise OSError without
            # one for a bad file.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # `from None`: a traceback that is logged would bring the library's text, and so the
            # patient's data, along.
            raise FluoroError(reason, message) from None
