"""What goes wrong where nobody can catch it: in a thread of our own, or in the middle of a call of
somebody who knows nothing of safesock."""

from __future__ import annotations

import weakref


class _Where:
    """Raises an error where the interpreter tells of it, by `sys.unraisablehook`, as ignored in
    this: what that hook takes can be made by the interpreter only."""

    def __init__(self, error: BaseException, where: str) -> None:
        self._error, self._where = error, where

    def __call__(self, _: object) -> None:
        raise self._error

    def __repr__(self) -> str:
        return self._where


def report(error: BaseException, where: str) -> None:
    """Tells of it, and goes on."""
    gone = _Where(error, where)
    ref = weakref.ref(gone, _Where(error, where))
    del gone
    del ref
