"""CPython's own tests of sockets, TLS and its protocol clients come out as on `socket.socket`."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import pytest
from cpython_runner import DEADLINE, Mode

RUNNER = Path(__file__).with_name("cpython_runner.py")
# They wait more than they compute.
AT_ONCE = 6
# How often a test whose outcome differs is run again.
ROUNDS = 3

WITHOUT_TLS = (Mode.SAFE, Mode.RELEASE)
WITH_TLS = (Mode.SAFE, Mode.BEFORE_SSL, Mode.TLS, Mode.RELEASE)
# The slowest first, as they run side by side.
SUITES = {
    "test_ssl": WITH_TLS,
    "test_imaplib": WITH_TLS,
    "test_socket": WITHOUT_TLS,
    "test_selectors": WITHOUT_TLS,
    "test_ftplib": WITH_TLS,
    "test_poplib": WITH_TLS,
    "test_smtplib": WITH_TLS,
    "test_httplib": WITH_TLS,
}
QUICK = ("test_smtplib", "test_httplib")
# test_selectors has nothing but socket pairs.
WITHOUT_CONNECTIONS = ("test_selectors",)

# Differences that are right: the test, and why. So far there is none.
BY_DESIGN: Mapping[str, str] = {}


class Report(TypedDict):
    """What the runner writes."""

    outcomes: dict[str, str]
    details: dict[str, str]
    altered: bool
    unraisable: list[str]
    connections: int


def run(module: str, mode: Mode, names: Iterable[str] = ()) -> Report:
    """Runs *module*, or what its tests' names begin with, in an interpreter of its own."""
    with tempfile.TemporaryDirectory(prefix="safesock-") as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log")
        command = [sys.executable, "-P", str(RUNNER), module, mode, str(result), *names]
        with log.open("wb") as output:
            subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=DEADLINE + 30,  # The runner ends itself before, and shows where it hangs.
                check=False,
            )
        assert result.exists(), f"{module} ({mode}) did not end:\n{log.read_text()[-8000:]}"
        report: Report = json.loads(result.read_text(encoding="utf-8"))
        return report


class Runs:
    """Each suite in each mode, run once, several at a time."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._reports: dict[tuple[str, Mode], Future[Report]] = {}

    def start(self, module: str, mode: Mode) -> Future[Report]:
        key = module, mode
        if key not in self._reports:
            self._reports[key] = self._pool.submit(run, module, mode)
        return self._reports[key]

    def that_differ_again(self, module: str, mode: Mode, names: list[str]) -> list[str]:
        """Those of *names* that come out in a way in which, without safesock, they never do.

        There are tests that fail now and then on a busy machine. They are run with the others of
        their classes, on whose doings they may depend.
        """
        classes = {match[0] for name in names if (match := re.search(r"test\.\w+(\.\w+)?", name))}
        seen = {
            each: [self._pool.submit(run, module, each, classes) for _ in range(ROUNDS)]
            for each in (Mode.PLAIN, mode)
            if names
        }

        def outcomes(name: str, each: Mode) -> set[str | None]:
            return {report.result()["outcomes"].get(name) for report in seen[each]}

        return [name for name in names if not outcomes(name, mode) <= outcomes(name, Mode.PLAIN)]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """The runs that the selected tests need, all of them under way."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = Runs(pool)
        for item in request.session.items:
            if item.path == request.path and isinstance(item, pytest.Function):
                of: Mapping[str, Any] = item.callspec.params
                if is_installed(of["module"]):
                    started.start(of["module"], Mode.PLAIN)
                    started.start(of["module"], of["mode"])
        yield started
        pool.shutdown(cancel_futures=True)


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(f"test.{module}") is not None
    except ModuleNotFoundError:
        return False


def cases() -> list[Any]:
    found = []
    for module, modes in SUITES.items():
        marks = [] if module in QUICK else [pytest.mark.campaign]
        found += [pytest.param(module, m, marks=marks, id=f"{module}-{m}") for m in modes]
    return found


def differing(plain: Report, safe: Report) -> list[str]:
    names = plain["outcomes"].keys() | safe["outcomes"].keys()
    return sorted(n for n in names if plain["outcomes"].get(n) != safe["outcomes"].get(n))


@pytest.mark.parametrize(("module", "mode"), cases())
def test_cpythons_own_tests_come_out_the_same(runs: Runs, module: str, mode: Mode) -> None:
    if not is_installed(module):
        pytest.skip(f"this Python comes without test.{module}, its own tests")
    plain = runs.start(module, Mode.PLAIN).result()
    safe = runs.start(module, mode).result()

    assert "pass" in safe["outcomes"].values()
    assert safe["connections"] > 0 or module in WITHOUT_CONNECTIONS
    names = [name for name in differing(plain, safe) if name not in BY_DESIGN]
    wrong = [
        f"{name}: {plain['outcomes'].get(name)} became {safe['outcomes'].get(name)}\n"
        + safe["details"].get(name, "")
        for name in runs.that_differ_again(module, mode, names)
    ]
    assert not wrong, "\n".join(wrong)
    # Threads, processes or files left behind, and exceptions that nobody could catch.
    assert plain["altered"] or not safe["altered"]
    assert plain["unraisable"] or not safe["unraisable"]
