"""A suite of tests that a test writes, and runs in a pytest of its own."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import pytest

from safesock import _leaks, _pytest_leaks, _pytest_plugin
from safesock.testing import _leak_warning

Run: TypeAlias = Callable[..., pytest.RunResult]

# pytester forgets what is imported in a pytest that it runs in this process. These are to stay.
STAYING = (_pytest_leaks, _leak_warning)
PLUGIN = _pytest_plugin.__name__
FAIL = ("-o", "safesock_leaks=fail")
WARN = ("-o", "safesock_leaks=warn")
IMPORTS = "import gc, os, socket, threading, unittest\nimport pytest, safesock\n"
CONFTEST = """
import pytest, socket, threading
import safesock
from safesock.testing import ScriptedPeer

KEPT = []

@pytest.fixture
def keep():
    return KEPT.append

@pytest.fixture(scope="session")
def server():
    with ScriptedPeer() as peer:
        yield peer

@pytest.fixture
def lost(server):
    "A connection whose peer has closed."
    def make():
        sock = socket.create_connection(server.address)
        server.accept().fin()
        return sock
    return make

def pytest_unconfigure():
    for sock in KEPT:
        sock.close()
"""


def in_process(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs tests in this process."""
    # Threads run: those of our own tests, which close nothing.
    monkeypatch.setattr(_leaks, "_PAUSES", ())
    act = functools.partial(pytester.runpytest_inprocess, plugins=[_pytest_plugin])
    return _runner(pytester, monkeypatch, act)


def alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs them in a process of their own."""
    act = functools.partial(pytester.runpytest_subprocess, "-p", PLUGIN)
    return _runner(pytester, monkeypatch, act)


def _runner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, act: Run) -> Run:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("CI", "BUILD_NUMBER"):  # With them, the summary says all of it again.
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(CONFTEST)

    def run(text: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=IMPORTS + text)
        # Our own filters do not count there.
        return act("-W", "default", *options)

    return run


def errors(result: pytest.RunResult) -> list[str]:
    """What tests are charged with: when, which test, and the first line of the error."""
    charge = r"^_+ ERROR at (\w+) of (?:\w+\.)?(\w+)(?:\[.*\])? _+\n(.*)$"
    found = re.findall(charge, result.stdout.str(), re.MULTILINE)
    return [" ".join(parts) for parts in found]


def charged(result: pytest.RunResult) -> list[str]:
    """The tests that are."""
    return [error.split()[1] for error in errors(result)]
