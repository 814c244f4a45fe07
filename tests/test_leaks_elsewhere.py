"""`safesock_leaks` in several processes, with coroutines, and where nothing can be seen."""

from __future__ import annotations

import re

import pytest
from suites import FAIL, PLUGIN, Run, alone, charged, in_process

from safesock import _kernel

pytest_plugins = "pytester"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    return in_process(pytester, monkeypatch)


@pytest.fixture
def run_alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    return alone(pytester, monkeypatch)


# Processes --------------------------------------------------------------------------------------


def test_it_works_in_xdists_workers(run_alone: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsafesock_leaks = fail\n")
    result = run_alone(
        """
@pytest.mark.parametrize("turn", range(6))
def test_leaves(lost, keep, turn):
    if turn % 2:
        keep(lost())

@pytest.mark.safesock_leaks("warn")
def test_warns(lost, keep):
    keep(lost())
""",
        "-p",
        "xdist.plugin",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=7, errors=3, warnings=1)
    for turn in (1, 3, 5):
        result.stdout.fnmatch_lines(
            [f"1 connection left open * gone, by test_it.py::test_leaves[[]{turn}[]]:"]
        )
    assert result.stdout.str().count("test_it.py:7: in test_leaves: keep(lost())") == 3


def test_children_are_left_alone(run_alone: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(child=CHILD)
    result = run_alone(
        """
import multiprocessing
from safesock import _leaks_made

def test_a_child_leaves_one(lost):
    pid = os.fork()
    if pid == 0:
        left = lost()
        os._exit(_leaks_made._recorders[0].made(os.fstat(left.fileno()).st_ino) is not None)
    assert os.waitpid(pid, 0) == (pid, 0)

def test_a_child_has_inherited_it(lost):
    sock = lost()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    sock.close()
    os.close(reader)
    CHILDREN.append((pid, writer))

CHILDREN = []

def test_multiprocessing(lost):
    process = multiprocessing.get_context("fork").Process(target=lost)
    process.start()
    process.join()
    pid, writer = CHILDREN.pop()
    os.close(writer)
    os.waitpid(pid, 0)

def test_a_child_returns(lost, keep, request):
    keep(lost())
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    else:
        request.config.is_child = True
""",
        *FAIL,
        "-p",
        "child",
        "-W",
        "ignore",
    )
    assert charged(result) == ["test_a_child_returns"]
    result.assert_outcomes(passed=4, errors=1)


CHILD = """
import os

def pytest_runtest_logreport(report):
    if report.when == "teardown" and os.getpid() != PID:
        os._exit(7 if report.passed else 1)

PID = os.getpid()
"""


def test_it_is_free_when_not_asked_for(pytester: pytest.Pytester) -> None:
    """As it is installed."""
    pytester.makepyfile(
        """
import sys

def test_it(request):
    assert "safesock._pytest_plugin" in sys.modules
    unwanted = "safesock.testing", "safesock._leaks", "safesock._pytest_leaks"
    assert not [name for name in sys.modules if name.startswith(unwanted)]
    assert "safesock._audit" not in sys.modules
    plugin = sys.modules["safesock._pytest_plugin"]
    hooks = {hook.name for hook in request.config.pluginmanager.get_hookcallers(plugin)}
    assert hooks == {"pytest_addoption", "pytest_configure", "pytest_collection_finish"}
"""
    )
    others = [f"-pno:{name}" for name in ("anyio", "asyncio", "hypothesispytest", "xdist")]
    pytester.runpytest_subprocess(*others).assert_outcomes(passed=1)


def test_help_and_markers_tell_of_it_and_it_can_be_left_out(
    run: Run, pytester: pytest.Pytester
) -> None:
    run("", "--markers").stdout.fnmatch_lines(['@pytest.mark.safesock_leaks(mode="fail"): the*'])
    run("", "--help").stdout.fnmatch_lines(["  safesock_leaks (string):*"])
    pytester.makeini("[pytest]\nsafesock_leaks = fail\n")
    result = run("def test_leaves(lost, keep):\n    keep(lost())\n", "-p", f"no:{PLUGIN}")
    result.assert_outcomes(passed=1)


def test_an_interrupt_is_only_that(run_alone: Run) -> None:
    result = run_alone(
        """
def test_is_interrupted(lost, keep):
    keep(lost())
    raise KeyboardInterrupt
""",
        *FAIL,
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "left open" not in result.stdout.str()
    assert "Error" not in result.stdout.str() + result.stderr.str()


# Coroutines -------------------------------------------------------------------------------------

ASYNC = """
import anyio, asyncio, contextlib, trio, uvloop

class Held:
    "What nobody closes, and whose loop is over."
    def __init__(self, one):
        self.one = one

    def close(self):
        with contextlib.suppress(RuntimeError):
            self.one.close()

async def dial(server, keep):
    reader, writer = await asyncio.open_connection(*server.address)
    keep(Held(writer))
    (await asyncio.to_thread(server.accept)).fin()
    assert await reader.read() == b""
    return writer

@pytest.mark.asyncio
async def test_asyncio(server, keep):
    await dial(server, keep)

@pytest.mark.asyncio
async def test_asyncio_closes(server, keep):
    (await dial(server, keep)).close()

@pytest.mark.anyio
async def test_anyio(server, keep):
    await dial(server, keep)

@pytest.mark.anyio
async def test_in_a_task(server, keep):
    stream = await anyio.connect_tcp(*server.address)
    keep(Held(stream._transport))
    (await asyncio.to_thread(server.accept)).fin()

def test_trio(server, keep):
    async def main():
        stream = await trio.open_tcp_stream(*server.address)
        keep(stream.socket._sock)
    trio.run(main)
    server.accept().fin()

def test_in_a_thread(server, keep):
    async def main():
        keep(await asyncio.to_thread(socket.create_connection, server.address))
    asyncio.run(main())
    server.accept().fin()

def test_uvloop(server, keep):
    "Whose loop closes them all; but for a duplicate."
    async def main():
        _, writer = await asyncio.open_connection(*server.address)
        keep(socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())))
    uvloop.run(main())
    server.accept().fin()
"""


def test_coroutines(run_alone: Run) -> None:
    plugins = ("-p", "anyio.pytest_plugin", "-p", "pytest_asyncio.plugin", "-W", "ignore")
    result = run_alone(ASYNC, *FAIL, *plugins, "-k", "not [trio]")
    leaving = ["test_asyncio", "test_anyio", "test_in_a_task", "test_trio", "test_in_a_thread"]
    leaving.append("test_uvloop")
    assert charged(result) == leaving
    # Not who runs the loop comes first, but the test.
    assert re.search(r"\n  fd .*\n    test_it.py:\d+: in test_asyncio: ", result.stdout.str())
    result.stdout.fnmatch_lines(
        [
            "    test_it.py:*: in test_asyncio: await dial(server, keep)",
            "    test_it.py:*: in dial: reader, writer = await asyncio.open_connection(*",
            "    ... * calls in asyncio",
            "    ... * calls in anyio*",
            "    while this waited:",
            "    test_it.py:*: in test_in_a_task: stream = await anyio.connect_tcp(*",
            "    while this waited:",
            "    test_it.py:*: in test_trio.<locals>.main: stream = await trio.open_tcp_stream(*",
            "    made in the thread 'asyncio_0':",
            "    ... * calls in *, socket",
            "    while this waited:",
            "    test_it.py:*: in test_in_a_thread*",
            "    made outside Python's socket module*",
        ]
    )


# Where it cannot be told ------------------------------------------------------------------------


def test_elsewhere_it_says_so_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernel, "LINUX", False)
    text = """
@pytest.mark.safesock_leaks
def test_leaves(lost, keep):
    keep(lost())
"""
    for options in ((), FAIL):
        result = run(text, *options)
        result.assert_outcomes(passed=1)
        lines = [line for line in result.stdout.lines if "Linux" in line]
        assert lines == ["safesock_leaks takes Linux: no connection was looked at"]


def test_without_a_free_descriptor_it_says_so(run_alone: Run) -> None:
    result = run_alone(
        """
import resource

SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)

def test_takes_all(keep, lost, request):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, HARD))
    request.getfixturevalue("with_none")

@pytest.fixture(scope="module")
def with_none():
    pass

def test_gives_back(keep):
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))

def test_leaves(lost, keep):
    keep(lost())
""",
        *FAIL,
    )
    result.assert_outcomes(passed=3, errors=1, warnings=2)
    result.stdout.fnmatch_lines(["*safesock_leaks: the connections of this * Too many open files*"])
    assert charged(result) == ["test_leaves"]
