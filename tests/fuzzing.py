"""Random input for tests: always the same, a little in the plain run, and much in the campaign."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def each_length(few: int, many: int) -> pytest.MarkDecorator:
    """For a test with the argument `examples`."""
    at_length = pytest.param(many, marks=pytest.mark.campaign)
    return pytest.mark.parametrize("examples", [few, at_length])


def hold(examples: int, claim: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Whether a claim holds for so many random arguments: what breaks it is made small and told."""
    bounded = settings(
        max_examples=examples,
        derandomize=True,  # The seed is the claim's own name.
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    bounded(given(*strategies)(claim))()


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Cut off anywhere, with some bytes changed."""
    changes = st.lists(st.tuples(st.integers(0, max(len(data) - 1, 0)), st.integers(0, 255)))

    def damage(end: int, changed: list[tuple[int, int]]) -> bytes:
        made = bytearray(data)
        for at, value in changed:
            made[at] = value
        return bytes(made[:end])

    ends = st.just(len(data)) | st.integers(0, len(data))
    return st.builds(damage, ends, changes)


# Values -----------------------------------------------------------------------------------------


class Agrees:
    """Equals everything, and is everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


class Refuses:
    """Has no truth."""

    def __bool__(self) -> NoReturn:
        raise RuntimeError("neither true nor false")


class Speechless:
    """Has no words. (hypothesis needs them: for tests without it.)"""

    def __repr__(self) -> NoReturn:
        raise RuntimeError("no words")


class Number:
    """Can be made a number, and is none."""

    def __float__(self) -> float:
        return 1.0

    def __int__(self) -> int:
        return 1

    def __index__(self) -> int:
        return 1


class OddInt(int):
    """An int that is not what it says."""

    def __float__(self) -> float:
        return math.nan

    def __int__(self) -> int:
        return -1

    def __index__(self) -> int:
        return -1

    def __lt__(self, other: object) -> bool:
        return True

    def __le__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return True

    def __ge__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "an odd int"


class OddFloat(float):
    """A float that says of itself that it is another."""

    def __float__(self) -> float:
        return math.inf

    def __repr__(self) -> str:
        return "an odd float"


class Seconds(enum.IntEnum):
    NONE = 0
    TWO = 2


class Word(enum.StrEnum):
    CLOSE = "close"
    KEEP = "keep"
    ABORT = "abort"


class OddWord(str, enum.Enum):  # noqa: UP042 - its str() is no word
    RELEASE = "release"


ODD: list[Any] = [
    Agrees(),
    Refuses(),
    Number(),
    Agrees,
    OddInt(3),
    OddInt(-3),
    OddInt(2**40),
    OddFloat(2.5),
    OddFloat(-2.5),
    *Seconds,
    *Word,
    *OddWord,
    10**5000,
    -(10**5000),
    1j,
    ...,
    NotImplemented,
]
NUMBERS = (
    st.integers(-2, 130)
    | st.sampled_from([0.001, 0.1, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**63])
    | st.integers()
    | st.floats(0, 10)
    | st.floats()
)
# From here and there: all of Unicode takes a second to look through.
LETTERS = (
    " !%+-./019:;=@AZ[]_az\0\t\n\r\x1b\x7f\x85\xa0\xe9\u0669\u2028\uff19\U0001f50c\udc80\ud800"
)
TEXTS = st.text(LETTERS, max_size=12) | st.sampled_from(["close", "release", "keep", ""])
VALUES = (
    NUMBERS
    | st.none()
    | st.booleans()
    | TEXTS
    | st.binary(max_size=8)
    | st.sampled_from(ODD)
    | st.lists(st.integers(0, 9), max_size=3)
    | st.tuples(TEXTS, NUMBERS)
)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """What a number or a text is, whatever it says."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return str.__str__(value) if isinstance(value, str) else value
