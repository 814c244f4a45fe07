"""CPython's own tests of sockets, TLS, asyncio and its protocol clients come out as on its own."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import pytest
from cpython_runner import DEADLINE, Mode

RUNNER = Path(__file__).with_name("cpython_runner.py")
# How often a test whose outcome differs is run again.
ROUNDS = 3

WITHOUT_TLS = (Mode.SAFE, Mode.RELEASE, Mode.ENFORCE)
WITH_TLS = (Mode.SAFE, Mode.BEFORE_SSL, Mode.TLS, Mode.RELEASE, Mode.ENFORCE)
STREAMS = (Mode.STREAMS, Mode.STREAMS_KEEP)
ASYNC = (*STREAMS, Mode.ENFORCE)
# The slowest first, as tests run side by side.
SUITES = {
    "test_ssl": WITH_TLS,
    "test_imaplib": WITH_TLS,
    "test_socket": WITHOUT_TLS,
    "test_selectors": WITHOUT_TLS,
    "test_ftplib": WITH_TLS,
    "test_poplib": WITH_TLS,
    "test_smtplib": WITH_TLS,
    "test_httplib": WITH_TLS,
    "test_asyncio.test_ssl": ASYNC,
    "test_asyncio.test_events": ASYNC,
    "test_asyncio.test_sslproto": ASYNC,
    "test_asyncio.test_sendfile": (Mode.SAFE, *ASYNC),
    "test_asyncio.test_streams": ASYNC,
    "test_asyncio.test_buffered_proto": ASYNC,
    "test_asyncio.test_sock_lowlevel": (Mode.SAFE, Mode.ENFORCE),
    "test_asyncio.test_selector_events": (Mode.SAFE, Mode.ENFORCE),
    "test_asyncio.test_base_events": (Mode.SAFE, Mode.ENFORCE),
    "test_asyncio.test_transports": ASYNC,
    "test_asyncio.test_server": (Mode.ENFORCE,),
    "test_asyncio.test_unix_events": (Mode.ENFORCE,),
    "test_xmlrpc": (Mode.ENFORCE,),
    "test_urllib2_localnet": (Mode.ENFORCE,),
    "test_telnetlib": (Mode.ENFORCE,),
    "test_nntplib": (Mode.ENFORCE,),
}
QUICK = ("test_smtplib", "test_httplib", "test_asyncio.test_streams")
# These have nothing but socket pairs, or no sockets.
WITHOUT_CONNECTIONS = (
    "test_selectors",
    "test_asyncio.test_selector_events",
    "test_asyncio.test_transports",
    "test_asyncio.test_unix_events",
)

# Differences that are right: the test, in which modes, and why.
BY_DESIGN: Mapping[str, tuple[tuple[Mode, ...], str]] = {
    "test_wait_closed_on_close": (
        (Mode.STREAMS,),
        "after the end of file the connection is closed, unless on_loss is keep",
    ),
    "test_unclosed_resource_warnings": (
        STREAMS,
        "as above; and the warning names SafeStreamWriter instead of StreamWriter",
    ),
    "test_unclosed_server_resource_warnings": (STREAMS, "the warning's name, as above"),
    "test_create_connection_memory_leak": (
        STREAMS,
        "it ends before the loop has called connection_lost, and get_extra_info still answers",
    ),
    "test_create_connection_local_addr_in_use": (
        STREAMS,
        "LocalPortBusyError names the address, but not in its strerror",
    ),
    "test_sendfile_force_unsupported_native": (
        STREAMS,
        "files are sent by read and write: native sendfile is asyncio's own transport's",
    ),
    "test_sendfile_prevents_bare_write": (STREAMS, "only while sendfile is native"),
}


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


class PlainRuns:
    """Each suite without safesock: run once, for all the processes that run tests side by side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, module: str) -> Report:
        with (self._folder / f"{module}.json").open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if not file.read(1):
                json.dump(run(module, Mode.PLAIN), file)
            file.seek(0)
            report: Report = json.load(file)
            return report


@pytest.fixture(scope="session")
def plain_runs(tmp_path_factory: pytest.TempPathFactory) -> PlainRuns:
    folder = tmp_path_factory.getbasetemp()
    return PlainRuns(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


def that_differ_again(module: str, mode: Mode, names: list[str]) -> list[str]:
    """Those of *names* that come out in a way in which, without safesock, they never do.

    There are tests that fail now and then on a busy machine. They are run with the others of
    their classes, on whose doings they may depend.
    """
    classes = {match[0] for name in names if (match := re.search(r"test\.\w+(\.\w+)?", name))}
    seen = {
        each: [run(module, each, classes) for _ in range(ROUNDS)]
        for each in (Mode.PLAIN, mode)
        if names
    }

    def outcomes(name: str, each: Mode) -> set[str | None]:
        return {report["outcomes"].get(name) for report in seen[each]}

    return [name for name in names if not outcomes(name, mode) <= outcomes(name, Mode.PLAIN)]


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


def is_by_design(name: str, mode: Mode) -> bool:
    modes, _ = BY_DESIGN.get(name.rpartition(".")[2], ((), ""))
    return mode in modes


def differing(plain: Report, safe: Report) -> list[str]:
    names = plain["outcomes"].keys() | safe["outcomes"].keys()
    return sorted(n for n in names if plain["outcomes"].get(n) != safe["outcomes"].get(n))


@pytest.mark.parametrize(("module", "mode"), cases())
def test_cpythons_own_tests_come_out_the_same(
    plain_runs: PlainRuns, module: str, mode: Mode
) -> None:
    if not is_installed(module):
        pytest.skip(f"this Python comes without test.{module}, its own tests")
    safe = run(module, mode)
    plain = plain_runs.of(module)

    assert "pass" in safe["outcomes"].values()
    assert safe["connections"] > 0 or module in WITHOUT_CONNECTIONS
    names = [name for name in differing(plain, safe) if not is_by_design(name, mode)]
    wrong = [
        f"{name}: {plain['outcomes'].get(name)} became {safe['outcomes'].get(name)}\n"
        + safe["details"].get(name, "")
        for name in that_differ_again(module, mode, names)
    ]
    assert not wrong, "\n".join(wrong)
    # Threads, processes or files left behind, and exceptions that nobody could catch.
    assert plain["altered"] or not safe["altered"]
    assert plain["unraisable"] or not safe["unraisable"]
