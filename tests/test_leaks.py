"""`safesock_leaks`: what tests leave behind, in a pytest of their own and with real sockets."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import sys
from collections.abc import Iterator

import pytest
from suites import FAIL, WARN, Run, charged, errors, in_process

from safesock import _leaks, _leaks_made
from safesock._leaks_held import held_by
from safesock._leaks_made import Recorder
from safesock.testing import ScriptedPeer

pytest_plugins = "pytester"
PAUSES = _leaks._PAUSES


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    return in_process(pytester, monkeypatch)


# What is charged --------------------------------------------------------------------------------


def test_what_a_test_leaves_in_close_wait_fails_it_with_where_it_was_made(run: Run) -> None:
    result = run(
        """
def dial(address):
    return socket.create_connection(address)

def test_leaves(scripted_peer, keep):
    sock = dial(scripted_peer.address)
    scripted_peer.accept().goodbye_then_fin(b"421 bye")
    keep(sock)

def test_next():
    pass
""",
        *FAIL,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.re_match_lines(
        [
            r"_+ ERROR at teardown of test_leaves _+",
            r"1 connection left open whose peer is gone, by test_it.py::test_leaves:",
            r"  fd \d+: CLOSE_WAIT, 127.0.0.1:\d+ -> 127.0.0.1:\d+, 7 bytes unread$",
            r"    test_it.py:8: in test_leaves: sock = dial\(scripted_peer.address\)",
            r"    test_it.py:5: in dial: return socket.create_connection\(address\)",
            r"    ... 1 call in socket",
            r"Close what has ended, .*safesock.wrap\(sock\), or safesock.enforce\(\)",
        ],
        consecutive=True,
    )


def test_a_descriptor_with_a_dead_connection_counts_and_its_peer_is_known(run: Run) -> None:
    result = run(
        """
def test_leaves(scripted_peer, keep):
    socks = [socket.create_connection(scripted_peer.address) for _ in range(2)]
    for sock in socks:
        scripted_peer.accept().rst()
        keep(sock)
""",
        *FAIL,
    )
    assert errors(result) == [
        "teardown test_leaves 2 connections left open whose peers are gone, "
        "by test_it.py::test_leaves:"
    ]
    result.stdout.re_match_lines(
        [r"  fd \d+: CLOSE \(reset, or timed out\), 127.0.0.1:\d+ -> 127.0.0.1:\d+$"]
    )


def test_what_is_closed_or_lives_or_is_garbage_or_was_accepted_is_no_leak(run: Run) -> None:
    run(
        """
def test_closed(lost):
    lost().close()

def test_dropped(lost):
    with pytest.warns(ResourceWarning):
        lost()

@pytest.mark.filterwarnings("ignore")
def test_garbage(lost):
    cycle = [lost()]
    cycle.append(cycle)
    gc.disable()

def test_lives(keep):
    gc.enable()
    listener = socket.create_server(("127.0.0.1", 0))
    keep(listener)
    keep(socket.create_connection(listener.getsockname()))
    keep(listener.accept()[0])

@pytest.mark.parametrize("how", ["close", "reset"])
def test_accepted(keep, how):
    "Also where nobody listens any more."
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted = listener.accept()[0]
    keep(accepted)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1" + bytes(7))
    client.close()
""",
        *FAIL,
        "-W",
        "error",
    ).assert_outcomes(passed=6)


def test_a_duplicate_is_one_connection_with_two_descriptors(run: Run) -> None:
    result = run(
        """
def test_leaves(lost, keep):
    sock = lost()
    keep(sock)
    keep(sock.dup())
""",
        *FAIL,
    )
    assert len(errors(result)) == 1
    result.stdout.re_match_lines([r"  fd \d+, \d+: CLOSE_WAIT"])


def test_other_threads_have_a_second_to_close_theirs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0.9 < sum(PAUSES) < 1.1
    monkeypatch.setattr(_leaks, "_PAUSES", PAUSES * 20)  # Our own machine may be slow.
    run(
        """
def test_closes_late(lost):
    threading.Timer(0.2, lost().close).start()
""",
        *FAIL,
    ).assert_outcomes(passed=1)


def test_what_was_not_made_by_python_is_told_without_a_stack(run: Run) -> None:
    result = run(
        """
import ctypes

def test_leaves(server, keep):
    sock = socket.socket()
    host, port = server.address
    name = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(host))
    assert ctypes.CDLL(None).connect(sock.fileno(), name, len(name)) == 0
    server.accept().fin()
    keep(sock)

import struct
""",
        *FAIL,
    )
    assert len(errors(result)) == 1
    result.stdout.fnmatch_lines(["    made outside Python's socket module*"])


def test_a_connect_in_a_thread_is_shown_with_its_stack(run: Run) -> None:
    result = run(
        """
def test_leaves(lost, keep):
    thread = threading.Thread(target=lambda: keep(lost()), name="dialler")
    thread.start()
    thread.join()
""",
        *FAIL,
    )
    result.stdout.fnmatch_lines(
        [
            "    made in the thread 'dialler':",
            "    test_it.py:*: in test_leaves.<locals>.<lambda>: *",
            "    conftest.py:*: in lost.<locals>.make: sock = *",
        ]
    )


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_what_safesock_governs_does_not_count_unless_it_keeps_it(run: Run, how: str) -> None:
    result = run(
        f"""
def connect(server, keep, wrap=lambda sock: sock):
    sock = wrap(socket.create_connection(server.address))
    keep(sock)
    server.accept().{how}()

@pytest.fixture
def enforced():
    with safesock.enforce(safesock.Policy(on_loss="release", grace=60)):
        yield

@pytest.fixture(scope="module")
def enforced_for_all():
    with safesock.enforce(safesock.Policy(on_loss="release", grace=60)):
        yield

def test_not_any_more(enforced, server, keep):
    connect(server, keep)

def test_enforced(enforced_for_all, server, keep):
    connect(server, keep)

def test_wrapped(server, keep):
    connect(server, keep, lambda sock: safesock.wrap(sock, safesock.Policy(grace=60)))

def test_kept(server, keep):
    connect(server, keep, lambda sock: safesock.wrap(sock, safesock.Policy(on_loss="keep")))

def test_unwatched(server, keep):
    connect(server, keep, lambda sock: safesock.wrap(sock, safesock.Policy(watch=False)))
""",
        *FAIL,
        "-W",
        "error",
    )
    found = charged(result)
    # What `enforced_for_all` had governed is over with it, and so is left to the end of the module.
    assert found[:2] == ["test_not_any_more", "test_kept"]
    assert found[2:] == ["test_unwatched"]


# When, and with what mode -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-o", "safesock_leaks=off"), ("-o", "safesock_leaks=")])
def test_without_being_asked_it_does_nothing(run: Run, options: tuple[str, ...]) -> None:
    run(
        """
def test_leaves(lost, keep, request):
    keep(lost())
    assert not request.config.pluginmanager.has_plugin("safesock_leaks")
""",
        *options,
    ).assert_outcomes(passed=1)


def test_a_mark_asks_for_it_and_only_for_its_test(run: Run) -> None:
    result = run(
        """
from safesock import _leaks_made

def test_unmarked(lost, keep):
    keep(lost())

@pytest.mark.safesock_leaks
def test_marked(lost, keep):
    keep(lost())

@pytest.mark.safesock_leaks("warn")
def test_warns(lost, keep):
    keep(lost())

def test_nothing_is_recorded(lost):
    with lost() as sock:
        inode = os.fstat(sock.fileno()).st_ino
    assert [one.made(inode) for one in _leaks_made._recorders] == [None]

@pytest.mark.safesock_leaks(mode="off")
class TestAll:
    def test_may(self, lost, keep):
        keep(lost())
""",
        "--strict-markers",
    )
    assert [error.split()[:2] for error in errors(result)] == [["teardown", "test_marked"]]
    result.assert_outcomes(passed=5, errors=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["  *test_it.py:13: LeakedConnectionWarning: 1 connection left * by *::test_warns:"]
    )


def test_a_mark_goes_before_the_configuration(run: Run) -> None:
    result = run(
        """
@pytest.mark.safesock_leaks("off")
def test_may(lost, keep):
    keep(lost())

@pytest.mark.safesock_leaks("fail")
def test_may_not(lost, keep):
    keep(lost())

def test_warns(lost, keep):
    keep(lost())
""",
        *WARN,
    )
    assert charged(result) == ["test_may_not"]
    result.assert_outcomes(passed=3, errors=1, warnings=1)


def test_the_warning_can_be_an_error_or_be_ignored(run: Run) -> None:
    text = "def test_leaves(lost, keep):\n    keep(lost())\n"
    name = "safesock.testing.LeakedConnectionWarning"
    run(text, *WARN, "-W", f"error::{name}").assert_outcomes(passed=1, errors=1)
    run(text, *WARN, "-W", f"ignore::{name}").assert_outcomes(passed=1, warnings=0)


def test_wrong_values_are_told_in_one_line(run: Run) -> None:
    result = run("def test_it(): pass\n", "-o", "safesock_leaks=sometimes")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = "safesock_leaks takes off, warn or fail: not 'sometimes'"
    assert result.stderr.str().strip() == f"ERROR: {said}"
    result = run(
        """
@pytest.mark.safesock_leaks("sometimes")
def test_a(): pass

@pytest.mark.safesock_leaks("warn", "fail")
def test_b(): pass

@pytest.mark.safesock_leaks(how="warn")
def test_c(): pass
"""
    )
    result.assert_outcomes(errors=3)
    for error in errors(result):
        assert 'the mark safesock_leaks takes one of "off", "warn", "fail": not' in error


def test_other_outcomes_stay_what_they_are(run: Run) -> None:
    """What fails in its middle has not come to where it closes, and is not charged twice."""
    result = run(
        """
def test_fails(lost, keep):
    keep(lost())
    assert False

@pytest.mark.xfail
def test_fails_as_expected(lost, keep):
    keep(lost())
    assert False

@pytest.fixture
def broken(lost, keep):
    keep(lost())
    assert False

def test_not_set_up(broken):
    pass

@pytest.fixture
def unbroken(lost, keep):
    yield
    keep(lost())
    assert False

def test_teardown_fails(unbroken):
    pass

def test_skips(lost):
    lost().close()
    pytest.skip("it is late")

class TestOld(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def take(self, lost, keep):
        self.lost, self.keep = lost, keep

    def test_fails(self):
        self.keep(self.lost())
        self.fail()

    def test_leaves(self):
        self.keep(self.lost())

@pytest.mark.xfail
def test_leaves_as_expected(lost, keep):
    keep(lost())
""",
        *FAIL,
    )
    assert [error.split()[:2] for error in errors(result)] == [
        ["setup", "test_not_set_up"],
        ["teardown", "test_teardown_fails"],
        ["teardown", "test_leaves"],
    ]
    result.assert_outcomes(failed=2, errors=3, passed=2, xfailed=2, skipped=1, xpassed=1)


def test_with_x_it_stops_at_the_first(run: Run) -> None:
    text = "def test_a(lost, keep):\n    keep(lost())\ndef test_b():\n    pass\n"
    run(text, *FAIL, "-x", "--setup-show").assert_outcomes(passed=1, errors=1)


# Wider fixtures ---------------------------------------------------------------------------------


def test_what_a_wider_fixture_makes_or_holds_is_its_own_and_judged_at_its_end(run: Run) -> None:
    result = run(
        """
class Pool:
    def __init__(self):
        self.idle = {}

@pytest.fixture(scope="class")
def pool():
    pool = Pool()
    yield pool
    for sock in pool.idle.values():
        sock.close()

@pytest.fixture(scope="class")
def hidden(server):
    "Makes a connection, and does not hold it: a global of the module does."
    global HIDDEN
    HIDDEN = socket.create_connection(server.address)
    end = server.accept()
    yield
    end.fin()

class TestThem:
    @pytest.mark.safesock_leaks("off")
    def test_comes_first(self, hidden):
        "It does not decide for the fixture."

    def test_uses(self, pool, hidden, lost):
        pool.idle["it"] = lost()
        HIDDEN.sendall(b"hello")

    def test_is_not_charged(self, pool, hidden):
        assert pool.idle

def test_next(keep):
    keep(HIDDEN)
""",
        *FAIL,
    )
    assert errors(result) == [
        "teardown test_is_not_charged 1 connection left open whose peer is gone, "
        "by the fixture 'hidden' (class scope):"
    ]
    result.stdout.fnmatch_lines(
        ["    test_it.py:*: in hidden: HIDDEN = socket.create_connection(server.address)"]
    )


def test_what_the_variables_of_a_wider_fixture_hold_is_its_own(run: Run) -> None:
    text = """
@pytest.fixture(scope="module")
def dial(lost_by_all):
    made = []
    class Client:
        def dial(self):
            made.append(lost_by_all())
    yield Client()
    for sock in made:
        sock.close()

@pytest.fixture(scope="module")
def lost_by_all():
    with socket.create_server(("127.0.0.1", 0)) as server:
        def dial():
            sock = socket.create_connection(server.getsockname())
            server.accept()[0].close()
            return sock
        yield dial

def test_uses(dial):
    dial.dial()

def test_last():
    pass
"""
    run(text, *FAIL).assert_outcomes(passed=2)


def test_a_pool_that_never_closes_is_told_at_the_end_of_its_fixture(run: Run) -> None:
    result = run(
        """
@pytest.fixture(scope="module")
def pool(request):
    return []

def test_uses(pool, lost, request):
    pool.append(lost())
    request.config.pool = pool  # Somebody else holds it, too.

def test_in_between(pool):
    pass

def test_last(pool, keep):
    keep(pool[0])
""",
        *FAIL,
    )
    assert errors(result) == [
        "teardown test_last 1 connection left open whose peer is gone, "
        "by the fixture 'pool' (module scope):"
    ]


def test_a_fixture_that_knows_pytest_does_not_hold_all(run: Run) -> None:
    result = run(
        """
@pytest.fixture(scope="module")
def context(request):
    return request

@pytest.fixture
def sock(lost, keep):
    sock = lost()
    keep(sock)
    return sock

def test_leaves(context, sock):
    pass

def test_last():
    pass
""",
        *FAIL,
    )
    assert charged(result) == ["test_leaves"]


def test_what_a_peer_ends_later_is_told_at_the_end_with_who_made_it(run: Run) -> None:
    result = run(
        """
ENDS = []

def test_makes(server, keep):
    keep(socket.create_connection(server.address))
    ENDS.append(server.accept())

def test_ends():
    ENDS[0].fin()

def test_last():
    pass
""",
        *FAIL,
    )
    assert errors(result) == [
        "teardown test_last 1 connection left open whose peer is gone, by test_it.py::test_makes:"
    ]


def test_what_a_thread_from_before_makes_is_told_at_the_end(run: Run) -> None:
    result = run(
        """
from concurrent.futures import ThreadPoolExecutor

@pytest.fixture(scope="module")
def workers():
    with ThreadPoolExecutor(1, thread_name_prefix="worker") as pool:
        pool.submit(int).result()
        yield pool

def test_uses(workers, lost, keep):
    workers.submit(lambda: keep(lost())).result()

def test_last():
    pass
""",
        *FAIL,
    )
    assert errors(result) == [
        "teardown test_last 1 connection left open whose peer is gone, "
        "by the thread 'worker_0', which is older than test_it.py::test_uses:"
    ]


def test_a_fixture_from_before_the_mark_holds_its_own_too(run: Run) -> None:
    result = run(
        """
@pytest.fixture(scope="module")
def pool():
    return []

def test_unmarked(pool):
    pass

@pytest.mark.safesock_leaks("fail")
def test_marked(pool, lost):
    pool.append(lost())

def test_last(pool, keep):
    keep(pool[0])
"""
    )
    assert errors(result) == [
        "teardown test_last 1 connection left open whose peer is gone, "
        "by the fixture 'pool' (module scope):"
    ]


# Other kinds of tests ---------------------------------------------------------------------------


def test_doctests_are_tests(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makefile(
        ".txt",
        test_doc="""
>>> import socket
>>> keep, server = (getfixture(name) for name in ("keep", "server"))
>>> keep(socket.create_connection(server.address))
>>> server.accept().fin()
""",
    )
    result = run("", *FAIL)
    result.stdout.fnmatch_lines(
        [
            "1 connection left open whose peer is gone, by test_doc.txt::test_doc.txt:",
            "    <doctest test_doc.txt*>:1: in <module>",
        ]
    )


# Where it was made ------------------------------------------------------------------------------


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    one = Recorder()
    one.start()
    yield one
    one.close()
    assert one not in _leaks_made._recorders


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_a_connect_that_is_asked_for_again_is_that_of_the_first_time(
    recorder: Recorder, scripted_peer: ScriptedPeer
) -> None:
    def ask(sock: socket.socket) -> int:
        return sock.connect_ex(scripted_peer.address)

    def ask_again(sock: socket.socket) -> int:
        return sock.connect_ex(scripted_peer.address)

    with socket.socket() as sock:
        sock.setblocking(False)
        ask(sock)
        assert ask_again(sock) in (0, errno.EISCONN, errno.EALREADY)
        made = recorder.made(inode_of(sock))
        assert made is not None
        assert made.calls[-1].function.endswith(".ask")
        assert made.address == scripted_peer.address


def test_a_test_that_makes_many_does_not_keep_all(
    recorder: Recorder, scripted_peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_leaks_made, "_ENOUGH", 3)
    monkeypatch.setattr(recorder, "_limit", 3)
    with socket.create_connection(scripted_peer.address) as kept:
        for _ in range(10):
            socket.create_connection(scripted_peer.address).close()
        assert recorder.made(inode_of(kept)) is not None
        assert len(recorder._made) <= 3


@pytest.mark.usefixtures("recorder")
def test_no_connect_fails_for_it(
    scripted_peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_leaks_made, "_made_here", lambda: 1)
    socket.create_connection(scripted_peer.address).close()


def test_what_an_object_holds_is_found_and_what_everybody_has_is_not() -> None:
    with socket.socket() as sock, socket.socket() as other:
        inodes = {inode_of(sock), inode_of(other)}

        class Client:
            def __init__(self) -> None:
                self.pool = {"it": [sock]}

            def get(self) -> None: ...

        client = Client()
        ways = [client, client.get, lambda: client, functools.partial(Client.get, client), [client]]
        for root in ways:
            assert held_by(root, inodes) == {inode_of(sock)}
        Client.everybodys = other  # type: ignore[attr-defined]
        sys.modules[__name__].everybodys = other  # type: ignore[attr-defined]
        try:
            assert held_by([client, held_by], inodes) == {inode_of(sock)}
        finally:
            del sys.modules[__name__].everybodys
        loop = asyncio.new_event_loop()
        loop.add_reader(other, print)
        assert held_by([client, loop], inodes) == {inode_of(sock)}
        loop.remove_reader(other)
        loop.close()
