"""What tests have left behind, in words."""

from __future__ import annotations

import linecache
import os

from safesock._audit_words import many
from safesock._errors import shown
from safesock._leaks import Leak, Maker, by_maker
from safesock._leaks_made import Call, Made, library

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_ADVICE = (
    "Close what has ended, in the client or at the end of the test; or let safesock do it: "
    "safesock.wrap(sock), or safesock.enforce() for clients that are not yours."
)
# Connections that are shown for one maker.
_SHOWN = 5


def message(leaks: Iterable[Leak], folder: os.PathLike[str]) -> str:
    """A paragraph for each who has left something. Files are named as seen from *folder*."""
    lines: list[str] = []
    for maker, ones in by_maker(leaks):
        lines += _paragraph(maker, ones, os.fspath(folder))
    return "\n".join([*lines, _ADVICE])


def _paragraph(maker: Maker, leaks: list[Leak], folder: str) -> Iterator[str]:
    gone = "peer is" if len(leaks) == 1 else "peers are"
    yield f"{many(len(leaks), 'connection')} left open whose {gone} gone, by {maker.name}:"
    for leak in leaks[:_SHOWN]:
        yield f"  {_connection(leak)}"
        yield from (f"    {line}" for line in _where(leak.made, folder))
    if len(leaks) > _SHOWN:
        yield f"  and {len(leaks) - _SHOWN} more"


def _connection(leak: Leak) -> str:
    one = leak.connection
    fds = ", ".join(map(str, leak.fds))
    state = f"{one.state} (reset, or timed out)" if one.lost else one.state
    local = "?" if one.local is None else shown(one.local)
    unread = f", {many(one.unread, 'byte')} unread" if one.unread else ""
    return f"fd {fds}: {state}, {local} -> {_peer(leak)}{unread}"


def _peer(leak: Leak) -> str:
    """The kernel forgets it when the connection is over."""
    if leak.connection.peer is not None:
        return shown(leak.connection.peer)
    address: Any = None if leak.made is None else leak.made.address
    return shown(address) if isinstance(address, tuple) and len(address) > 1 else "?"


def _where(made: Made | None, folder: str) -> Iterator[str]:
    if made is None:
        yield "made outside Python's socket module (or before this was asked for)"
        return
    calls = list(made.calls)
    # Event loops and the like, that have called the test.
    while calls and any(call.is_own() for call in calls) and not calls[0].is_own():
        del calls[0]
    if made.thread_name is not None:
        yield f"made in the thread {made.thread_name!r}:"
    yield from _stack(calls, folder)
    if made.meanwhile:
        yield "while this waited:"
        yield from (_line(call, folder) for call in made.meanwhile)


def _stack(calls: list[Call], folder: str) -> Iterator[str]:
    """Outermost first; those of libraries are summed up."""
    passed: list[Call] = []
    for call in calls:
        if call.is_own():
            yield from _summary(passed)
            passed = []
            yield _line(call, folder)
        else:
            passed.append(call)
    yield from _summary(passed)


def _summary(calls: list[Call]) -> Iterator[str]:
    names = dict.fromkeys(name for call in calls if (name := library(call.file)) != "safesock")
    if names:
        count = sum(library(call.file) != "safesock" for call in calls)
        yield f"... {many(count, 'call')} in {', '.join(map(str, names))}"


def _line(call: Call, folder: str) -> str:
    file = os.path.relpath(call.file, folder) if call.file.startswith(folder) else call.file
    text = linecache.getline(call.file, call.line).strip()
    return f"{file}:{call.line}: in {call.function}{': ' if text else ''}{text}"
