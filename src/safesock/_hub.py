"""Whom events are for. As long as there is nobody, no event is made."""

from __future__ import annotations

from safesock import _forks, _logger, _unraisable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from safesock.events import Event

    Subscriber = Callable[[Any], object]
    Audience = tuple[Subscriber, ...]

DEBUG, INFO = _logger.DEBUG, _logger.INFO

_subscribers: Audience = ()
_lock = _forks.lock()


def add(one: Subscriber) -> None:
    """From now on it is called."""
    global _subscribers
    with _lock:
        _subscribers = (*_subscribers, one)


def remove(one: Subscriber) -> None:
    """If it is there."""
    global _subscribers
    with _lock:
        _subscribers = tuple(other for other in _subscribers if other is not one)


def is_heard(level: int = DEBUG) -> bool:
    """Whether an event of this level is for anybody."""
    return bool(_subscribers) or _logger.listens(level)


def audience() -> Audience:
    """Those who are to be told of what happens now, which may come to be told later."""
    return _subscribers


def deliver(event: Event, to: Audience) -> None:
    """Calls them, and the logger. What they raise is told by `sys.unraisablehook`, also
    KeyboardInterrupt, as with finalizers: who makes and closes connections is not struck by it."""
    logs = (_logger.log,) if _logger.listens(event._level) else ()
    for one in (*to, *logs):
        try:
            one(event)
        except BaseException as error:
            _unraisable.report(error, f"{one!r}: the others are told, and the connection goes on")
