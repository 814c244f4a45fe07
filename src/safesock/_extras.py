"""The extra that a package comes with, for who has imported what takes it without."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def brought_by(extra: str) -> Iterator[None]:
    """Around the imports of what *extra* brings: raises ModuleNotFoundError that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        told = f"this takes what is not installed: pip install 'safesock[{extra}]'"
        raise ModuleNotFoundError(told, name=error.name, path=error.path) from error
