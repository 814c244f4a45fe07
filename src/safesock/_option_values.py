"""What the values of the command line's options mean; ValueError for what cannot be meant."""

from __future__ import annotations

from safesock._policy import Abort, CloseMode, Drain, Graceful, Linger
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODES: dict[str, Any] = {
    "graceful": Graceful,
    "drain": Drain,
    "linger": Linger,
    "abort": Abort,
}


def close_mode(text: str) -> CloseMode:
    name, equals, seconds = text.partition("=")
    mode = _MODES.get(name)
    if mode is None or (equals and mode not in (Drain, Linger)):
        raise ValueError(
            "--close takes graceful, drain, drain=SECONDS, linger, linger=SECONDS or abort: "
            f"not {said(text)}"
        )
    seconds_given = (number("--close", seconds),) if equals else ()
    try:
        made: CloseMode = mode(*seconds_given)
    except ValueError as error:
        raise ValueError(f"--close: {error}") from None
    return made


def number(name: str, text: str) -> Any:
    """An int or a float, as it is written: the library says which it takes."""
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ValueError(f"{name} takes a number: not {said(text)}") from None
