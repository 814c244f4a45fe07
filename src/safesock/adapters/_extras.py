"""The extra that a client comes with, for who has imported its adapter without."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def brought_by(extra: str) -> Iterator[None]:
    """Around the imports of a client: raises ModuleNotFoundError that names *extra*."""
    try:
        yield
    except ModuleNotFoundError as error:
        told = f"this adapter takes what is not installed: pip install 'safesock[{extra}]'"
        raise ModuleNotFoundError(told, name=error.name, path=error.path) from error
