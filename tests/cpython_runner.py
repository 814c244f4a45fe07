"""Runs one module of CPython's own tests, and writes what became of each test as JSON.

    python -P cpython_runner.py MODULE MODE RESULT.json [NAME ...]

MODE says what the module finds when it is imported: see `Mode`. With names (a test id, or what it
begins with), only those tests run. They make files in the working directory. This is a script of
its own, as what it replaces cannot be put back, and as one mode must begin without `ssl`.
"""

from __future__ import annotations

import enum
import faulthandler
import importlib
import json
import socket
import sys
import unittest
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import safesock

# Everything but what would leave this machine, or needs one that is rich or has a display.
RESOURCES = ("cpu", "subprocess", "walltime")
# Through the hypervisor, and for ever where that does not answer.
LEFT_OUT = "test.test_socket.ThreadedVSOCKSocketStreamTest."
DEADLINE = 900

Error = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Mode(enum.StrEnum):
    """What the tests run on."""

    PLAIN = "plain"
    SAFE = "safe"
    """`socket.socket` is `SafeSocket`, `ssl` is as it was."""
    BEFORE_SSL = "before-ssl"
    """As SAFE, and `ssl` is imported afterwards: its `SSLSocket` is made of `SafeSocket`."""
    TLS = "tls"
    """As SAFE, and every `SSLContext` gives a `SafeSSLSocket`."""
    RELEASE = "release"
    """As TLS, with on_loss="release"."""
    ENFORCE = "enforce"
    """All classes as they were, under `safesock.enforce()`."""
    STREAMS = "streams"
    """asyncio's clients are those of `safesock.asyncio`, its streams are, too."""
    STREAMS_KEEP = "streams-keep"
    """As STREAMS, with on_loss="keep": asyncio's own half-open connections."""


class Released(safesock.SafeSocket):
    """With the policy of one that stays out of its owner's way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, policy=safesock.Policy(on_loss="release"), **kwargs)


class Kept(safesock.SafeSocket):
    """Half-open, as asyncio leaves a connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, policy=safesock.Policy(on_loss="keep"), **kwargs)


def replace_asyncio(policy: safesock.Policy) -> None:
    import asyncio

    import safesock.asyncio

    plain = asyncio.BaseEventLoop.create_connection

    async def create_connection(
        self: Any, factory: Any, host: Any = None, port: Any = None, **kwargs: Any
    ) -> Any:
        sock = kwargs.get("sock")
        if sock is None:
            kwargs["policy"] = policy
        elif sock.family not in (socket.AF_INET, socket.AF_INET6):
            return await plain(self, factory, host, port, **kwargs)
        return await safesock.asyncio.create_connection(factory, host, port, **kwargs)

    async def open_connection(*args: Any, **kwargs: Any) -> Any:
        return await safesock.asyncio.open_connection(*args, policy=policy, **kwargs)

    asyncio.BaseEventLoop.create_connection = create_connection  # type: ignore[assignment]
    streams: Any
    for streams in (asyncio, asyncio.streams):
        streams.open_connection = open_connection
        streams.StreamReader = safesock.asyncio.SafeStreamReader
        streams.StreamWriter = safesock.asyncio.SafeStreamWriter


def replace(mode: Mode) -> None:
    if mode is Mode.PLAIN:
        return
    if mode is Mode.ENFORCE:
        safesock.enforce()
        return
    if mode in (Mode.STREAMS, Mode.STREAMS_KEEP):
        policy = safesock.Policy(on_loss="keep" if mode is Mode.STREAMS_KEEP else "close")
        socket.socket = Kept if mode is Mode.STREAMS_KEEP else safesock.SafeSocket  # type: ignore[misc]
        replace_asyncio(policy)
        return
    if mode is Mode.BEFORE_SSL:
        assert "ssl" not in sys.modules
        socket.socket = safesock.SafeSocket  # type: ignore[misc]
        return
    import ssl

    socket.socket = Released if mode is Mode.RELEASE else safesock.SafeSocket  # type: ignore[misc]
    if mode is not Mode.SAFE:
        ssl.SSLContext.sslsocket_class = safesock.SafeSSLSocket


def connections_so_far() -> int:
    """The connections that safesock has governed in this process; this call makes one of them.

    It also starts the watcher's thread: a suite that looks for threads left behind by a test would
    blame the first one that connects.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, safesock.SafeSocket() as sock:
        sock.connect(listener.getsockname())
    assert sock.close_report is not None
    return sock.close_report.connection


class Outcomes(unittest.TestResult):
    """What became of each test, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        print(test.id(), flush=True)  # To see which one hangs.

    def _note(self, test: Any, outcome: str, error: Error | None = None) -> None:
        name = test.id()
        # What went wrong stays, whatever comes after it (a failing test whose tearDown passes).
        if self.found.get(name, "pass") == "pass" or outcome.startswith(("fail", "error")):
            self.found[name] = outcome
        if error is not None:
            text = self._exc_info_to_string(error, test)  # type: ignore[attr-defined]
            self.details[name] = self.details.get(name, "") + text

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._note(test, "pass")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._note(test, "fail", err)

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._note(test, "error", err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self._note(test, f"skip: {reason}")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._note(test, "expected failure", err)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._note(test, "unexpected success")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is None:
            self._note(subtest, "pass")
        else:
            failed = issubclass(err[0], test.failureException)
            self._note(subtest, "fail" if failed else "error", err)


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flat(item)
        else:
            yield item


def selected(test: unittest.TestCase, wanted: list[str]) -> bool:
    name = f"{test.id()}."
    if name.startswith(LEFT_OUT):
        return False
    return not wanted or name.startswith(tuple(f"{prefix}." for prefix in wanted))


def run(name: str, wanted: list[str]) -> dict[str, Any]:
    support: Any = importlib.import_module("test.support")
    support.use_resources = list(RESOURCES)
    unraisable: list[str] = []
    sys.unraisablehook = lambda args: unraisable.append(f"{args.exc_value!r} in {args.object!r}")
    outcomes = Outcomes()
    module = importlib.import_module(f"test.{name}")
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    unittest.TestSuite(test for test in flat(suite) if selected(test, wanted)).run(outcomes)
    support.gc_collect()
    return {
        "outcomes": outcomes.found,
        "details": outcomes.details,
        "altered": support.environment_altered,
        "unraisable": unraisable,
    }


def main(name: str, mode: str, result: str, *wanted: str) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    before = connections_so_far() if mode != Mode.PLAIN else 0
    replace(Mode(mode))
    answer = run(name, list(wanted))
    answer["connections"] = connections_so_far() - before - 1 if before else 0
    with open(result, "w", encoding="utf-8") as file:
        json.dump(answer, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
