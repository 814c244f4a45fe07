"""Events as records of the logger `safesock`, for a program that has imported `logging` and wants
them. Nothing is imported for it, and no handler or level is set."""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As `logging` numbers them, which need not have been imported.
DEBUG, INFO = 10, 20

_logger: Any = None


class _Within(threading.local):
    busy = False


_within = _Within()


def listens(level: int) -> bool:
    """Whether what has this level is logged. Not what logging itself does with sockets, in a
    handler that sends records over TCP: it would never end."""
    global _logger
    if _logger is None:
        module = sys.modules.get("logging")
        if module is None:
            return False
        try:
            _logger = module.getLogger("safesock")
        except AttributeError:
            return False  # It is being imported, or is another module of that name.
    return bool(_logger.isEnabledFor(level)) and not _within.busy


def log(event: Any) -> None:
    """The event is the record's argument: it is put into words when a handler writes it."""
    _within.busy = True
    try:
        _logger.log(event._level, "%s", event)
    finally:
        _within.busy = False
