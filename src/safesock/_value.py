"""Records that never change. (`dataclasses` would double the time that `import safesock` takes.)"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self


class Value:
    """Compared and hashed by value, printed as it is written, pickled and copied; never changed.

    A subclass names its fields, in the order of its parameters, in `__slots__`.
    """

    __slots__: tuple[str, ...] = ()
    _names: tuple[str, ...] = ()
    _setters: tuple[Callable[[Value, object], None], ...] = ()

    def __init_subclass__(cls) -> None:
        names = cls.__dict__.get("__slots__", ())
        cls._names += names
        cls._setters += tuple(cls.__dict__[name].__set__ for name in names)

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _set_all(self, *values: object) -> None:
        """The same, of all in their order: for records that are made by the ten thousand."""
        for setter, value in zip(self._setters, values, strict=True):
            setter(self, value)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._names)

    def __replace__(self, **changes: Any) -> Self:
        # What copy.replace calls, from Python 3.13 on.
        return type(self)(**dict(zip(self._names, self._values(), strict=True)) | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} never changes: make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} never changes: make a new one")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), self._values()


_LONGEST = 500


def said(value: object) -> str:
    """A wrong value, for the error that refuses it: as it is written, unless that is very long, or
    is an error itself, as for an int of thousands of digits."""
    try:
        text = repr(value)
    except Exception:
        return object.__repr__(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
