"""What may be the matter with a client's own process for a while."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

Weather: TypeAlias = (
    "Callable[[random.Random, Counter[str]], contextlib.AbstractContextManager[None]]"
)

_SECONDS_BETWEEN_SIGNALS = 0.001


class StruckError(Exception):
    """What the signal handler raises."""


@contextlib.contextmanager
def calm(rng: random.Random, counts: Counter[str]) -> Iterator[None]:
    del rng, counts
    yield


@contextlib.contextmanager
def signals(rng: random.Random, counts: Counter[str]) -> Iterator[None]:
    """A thousand a second, in whatever system call there is."""
    del rng
    with _alarm(lambda _: counts.update(["signals"])):
        yield


@contextlib.contextmanager
def raising(rng: random.Random, counts: Counter[str]) -> Iterator[None]:
    """The same, and now and then the handler raises, amid what safesock is at."""

    def handle(frame: FrameType | None) -> None:
        counts["signals"] += 1
        if frame is not None and _is_inside(frame) and rng.random() < 0.1:
            counts["signals that raised"] += 1
            raise StruckError

    with _alarm(handle):
        yield


def _is_inside(frame: FrameType) -> bool:
    """Whether safesock has begun something. Where `__del__` has not, there is nothing that it can
    do: CPython drops the object as it is, with its descriptor open."""
    code = frame.f_code
    is_unbegun = code.co_name == "__del__" and frame.f_lineno == code.co_firstlineno
    return "/safesock/" in code.co_filename and not is_unbegun


@contextlib.contextmanager
def _alarm(handle: Callable[[FrameType | None], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda _, frame: handle(frame) and None)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS_BETWEEN_SIGNALS, _SECONDS_BETWEEN_SIGNALS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def few_descriptors(rng: random.Random, counts: Counter[str]) -> Iterator[None]:
    """So few that some calls get EMFILE, and some do not."""
    del counts
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    # The limit is on numbers.
    free = next(number for number in range(max(numbers) + 2) if number not in numbers)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + rng.randrange(4), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def jumping_clock(rng: random.Random, counts: Counter[str]) -> Iterator[None]:
    """The time of day is another at each look; what is monotonic is not."""
    real = time.time

    def jump() -> float:
        counts["jumps of the clock"] += 1
        return real() + rng.uniform(-3e8, 3e8)

    time.time = jump
    try:
        yield
    finally:
        time.time = real
