"""`safesock audit`."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from typing import NamedTuple

from safesock import _audit_words, _signals
from safesock._audit import audit, audit_host
from safesock._audit_records import Audit
from safesock._option_values import number
from safesock._policy import seconds_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import Any

_NOTHING, _FOUND = 0, 1
_PAUSE = 1.0
# More than any system's; int() refuses thousands of them.
_MOST_DIGITS = 20


class Options(NamedTuple):
    """What is looked at, and how it is shown."""

    pid: int | None
    host: bool
    older_than: float | None
    json: bool
    watch: bool


def options_in(namespace: Namespace) -> Options:
    """Those of the command line. Raises ValueError for what cannot be meant."""
    pid = namespace.pid
    if pid is not None and not (pid.isascii() and pid.isdigit() and pid.strip("0")):
        raise ValueError(f"--pid takes the number of a process: not {pid!r}")
    if pid is not None and len(pid) > _MOST_DIGITS:
        raise ValueError(f"--pid takes the number of a process: not one of {len(pid)} digits")
    older_than = namespace.older_than
    if older_than is not None:
        older_than = seconds_in("--older-than", number("--older-than", older_than))
    return Options(
        None if pid is None else int(pid),
        namespace.host,
        older_than,
        namespace.json,
        namespace.watch,
    )


def run(options: Options) -> int:
    """Shows it; the exit status. Raises OSError where it cannot be read."""
    if options.watch:
        return _watch(options)
    with _no_collections():
        return _show(options)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """All that is made is kept to the end: to look through it again and again finds nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _show(options: Options) -> int:
    found = _look(options)
    _tell(found)
    if options.json:
        print(_audit_words.as_json(found, options.older_than))
    elif sys.stdout is not None and sys.stdout.isatty() and (screen := _screen()):
        screen.show(found, options.older_than)
    else:
        print(*_audit_words.lines(found, options.older_than), sep="\n")
    return _FOUND if found.found(options.older_than) else _NOTHING


def _look(options: Options) -> Audit:
    if options.pid is None:
        return audit_host(unowned=options.host)
    return audit(options.pid)


def _tell(found: Audit) -> None:
    if sys.stderr is None:
        return  # print would take stdout for it.
    for note in found.notes:
        print(f"safesock: {note}", file=sys.stderr)


def _screen() -> Any:
    """None where there is no rich."""
    try:
        from safesock._audit_screen import Screen
    except ImportError:
        return None
    return Screen(sys.stdout)


def _watch(options: Options) -> int:
    if sys.stdout is None:
        raise OSError("--watch takes a stdout, and it is closed")
    screen = _screen()
    if screen is None:
        raise OSError("--watch takes rich: pip install 'safesock[cli]'")
    with _signals.raised(), screen:  # Or SIGTERM would leave the terminal without a cursor.
        while True:
            screen.draw(_look(options), options.older_than)
            time.sleep(_PAUSE)
