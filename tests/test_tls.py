"""TLS connections are lost and closed, beside those of the standard library's `SSLSocket`."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any

import kernel
import pytest
from peer import EOF, RESET, TIMEOUT
from process import in_child
from tls_client import (
    MODES,
    QUIET,
    READ_NAMES,
    READS,
    WRITE_NAMES,
    WRITES,
    by_end,
    by_secure_and_wrap,
    connect,
    fin_only,
    goodbye_and_fin,
    goodbye_notify_and_fin,
    loss_of,
    lost,
    notify_and_fin,
    outcome,
    read_file,
    read_to_the_end,
    readable,
    rst,
    wait_for_the_end,
    wait_for_the_reset,
)
from tls_peer import Certificates, TlsPeer, done

from safesock import Abort, Cause, Drain, Graceful, Policy

# A loss is told as in the standard library ------------------------------------------------------


@by_end
@pytest.mark.parametrize("suppress", [True, False], ids=["suppress", "strict"])
@pytest.mark.parametrize("read", READS, ids=READ_NAMES)
def test_reading_meets_the_end_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, act: Any, suppress: bool, read: Any
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = connect(tls, certificates.client(), policy, suppress_ragged_eofs=suppress)
        with sock:
            act(end)
            wait_for_the_end(sock)
            told = [outcome(read, sock)]
            if told[0] in (b"goodbye", (7, b"goodbye" + bytes(93))):
                told.append(outcome(read, sock))
            both.append(told)
            if policy:
                assert lost(sock).cause is (Cause.RST if act is rst else Cause.FIN)
                assert sock.fileno() == -1
                assert kernel.state(lost(sock).local, tls.address) != "CLOSE_WAIT"
                assert sock.recv(1) == b""
    assert both[0] == both[1]


@pytest.mark.parametrize("suppress", [True, False], ids=["suppress", "strict"])
@by_end
@by_secure_and_wrap
def test_the_error_is_in_the_loss(
    tls: TlsPeer, certificates: Certificates, version: str, act: Any, suppress: bool, way: Any
) -> None:
    """That which the standard library raises when it suppresses none."""
    errors = []
    for policy, hide in ((None, False), (QUIET, suppress)):
        sock, end = way(tls, certificates.client(version), policy, suppress_ragged_eofs=hide)
        with sock:
            act(end)
            wait_for_the_end(sock)
            error = read_to_the_end(sock)
            error = lost(sock).error if policy else error
            errors.append((type(error), error and error.args))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "timeout", [None, 0.0, TIMEOUT], ids=["blocking", "non-blocking", "timeout"]
)
@by_end
@by_secure_and_wrap
def test_every_mode_meets_the_end(
    tls: TlsPeer, certificates: Certificates, act: Any, timeout: float | None, way: Any
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            sock.settimeout(timeout)
            act(end)
            wait_for_the_end(sock)
            both.append([outcome(lambda sock: sock.recv(100), sock) for _ in range(2)])
            assert policy is None or sock.fileno() == -1
    if both[0][0] != b"goodbye":  # After the end the standard library goes on trying.
        both = [told[:1] for told in both]
    assert both[0] == both[1]


@pytest.mark.parametrize("write", WRITES, ids=WRITE_NAMES)
@pytest.mark.parametrize("act", [notify_and_fin, fin_only, rst], ids=lambda act: act.__name__)
@by_secure_and_wrap
def test_writing_meets_the_end_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, act: Any, write: Any, way: Any
) -> None:
    """After a FIN the first write seems to succeed, and is answered with RST."""
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            act(end)
            wait_for_the_end(sock)
            told = [outcome(write, sock)]
            if act is not rst:
                wait_for_the_reset(sock)
                told.append(outcome(write, sock))
            both.append(told)
            if policy:
                assert lost(sock).cause is Cause.RST
                assert sock.fileno() == -1
                for again in WRITES:
                    with pytest.raises(BrokenPipeError):
                        again(sock)
                assert sock.recv(1) == b""
    assert both[0] == both[1]


def test_close_notify_alone_ends_the_connection(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    sock, end = connect(tls, context23)
    with sock:
        end.close_notify()
        assert sock.recv(1) == b""
        assert (lost(sock).cause, lost(sock).error) == (Cause.FIN, None)
        assert sock.fileno() == -1
        assert end.read_to_end()[1] == EOF


def test_no_loss_in_timeouts_and_empty_reads(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    sock, end = connect(tls, context23)
    with sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(TIMEOUT)
        assert sock.recv(0) == b""
        assert sock.read(0) == b""
        assert loss_of(sock) is None
        end.say(b"x")
        assert sock.recv(1) == b"x"


@by_secure_and_wrap
def test_a_read_into_an_empty_buffer_is_no_loss(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any
) -> None:
    sock, end = way(tls, context23)
    with sock:
        end.say(b"hello")
        assert sock.recv_into(bytearray(), 100) == 0
        assert sock.read(1024, bytearray()) == 0
        assert loss_of(sock) is None
        assert sock.recv(5) == b"hello"


def test_garbage_amid_data_is_an_error_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = connect(tls, certificates.client(), policy)
        with sock:
            end.say_in_clear(b"this is no TLS record at all")
            both.append(outcome(lambda sock: sock.recv(100), sock))
    assert both[0] == both[1]


@by_secure_and_wrap
@by_end
def test_after_a_loss_questions_are_answered_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, version: str, way: Any, act: Any
) -> None:
    questions: Any = [
        *("version", "cipher", "compression", "shared_ciphers", "getpeercert", "pending"),
        *("selected_alpn_protocol", "getpeername", "gettimeout"),
    ]
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(version), policy)
        with sock:
            local = sock.getsockname()
            act(end)
            wait_for_the_end(sock)
            read_to_the_end(sock)
            both.append([outcome(methodcaller(name), sock) for name in questions])
            assert policy is None or sock.getsockname() == local
            assert sock.session_reused is False
            assert isinstance(sock.get_channel_binding(), (bytes, type(None)))
    # RST: the kernel has no peer any more; a SafeSocket remembers.
    at = questions.index("getpeername")
    assert both[1][at] == tls.address
    assert [both[0][:at], both[0][at + 1 :]] == [both[1][:at], both[1][at + 1 :]]


@by_secure_and_wrap
@by_end
def test_after_a_loss_nothing_is_sent(
    tls: TlsPeer, context: ssl.SSLContext, way: Any, act: Any
) -> None:
    sock, end = way(tls, context)
    with sock:
        act(end)
        wait_for_the_end(sock)
        read_to_the_end(sock)
        assert "lost by" in repr(sock)
        with pytest.raises(BrokenPipeError):
            sock.do_handshake()
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")
        assert sock.unwrap() is sock
        assert sock.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


# What the policy says ---------------------------------------------------------------------------


@by_secure_and_wrap
def test_release_leaves_the_descriptor_and_lets_one_send_succeed(
    tls: TlsPeer, certificates: Certificates, way: Any
) -> None:
    both = []
    for policy in (None, Policy(watch=False, on_loss="release")):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            notify_and_fin(end)
            told: list[object] = [sock.recv(10), sock.recv(10), sock.fileno() >= 0]
            if policy:
                assert lost(sock).cause is Cause.FIN
                assert kernel.state_of(sock) != "CLOSE_WAIT"
                assert sock.getpeername() == tls.address
            told.append(outcome(WRITES[0], sock))
            wait_for_the_reset(sock)
            told.append(outcome(WRITES[0], sock))
            told.append(outcome(WRITES[0], sock))
            both.append(told)
    assert both[0] == both[1]


@by_secure_and_wrap
def test_writes_after_a_release_leave_unread_plain_text_alone(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any
) -> None:
    """A shorter write after one that failed is fatal to OpenSSL."""
    sock, end = way(tls, context23, Policy(grace=0.01, on_loss="release"))
    with sock:
        end.say(b"unread data")
        end.fin()
        kernel.wait_until(lambda: kernel.state_of(sock) != "CLOSE_WAIT")
        kernel.wait_until(lambda: loss_of(sock) is not None, "the watcher has stepped in")
        assert sock.send(b"x" * 100) == 100
        for _ in range(2):
            with pytest.raises((ssl.SSLEOFError, BrokenPipeError)):
                sock.send(b"y")
        assert sock.recv(100) == b"unread data"
        assert sock.recv(100) == b""


@by_secure_and_wrap
def test_keep_only_records(tls: TlsPeer, context: ssl.SSLContext, way: Any) -> None:
    sock, end = way(tls, context, Policy(watch=False, on_loss="keep"))
    with sock:
        end.close_notify()
        end.half_close()
        assert sock.recv(1) == b""
        assert lost(sock).cause is Cause.FIN
        assert kernel.state_of(sock) == "CLOSE_WAIT"
        sock.sendall(b"still talking")
        assert end.read(13) == b"still talking"


@pytest.mark.parametrize(
    ("close", "on_loss", "act"),
    [(mode, "close", goodbye_and_fin) for mode in MODES]
    + [(Graceful(), on_loss, goodbye_notify_and_fin) for on_loss in ("close", "release", "keep")],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
@by_secure_and_wrap
def test_unread_plain_text_survives_the_watcher(
    tls: TlsPeer, context: ssl.SSLContext, on_loss: Any, act: Any, close: Any, way: Any
) -> None:
    sock, end = way(tls, context, Policy(close=close, grace=0.01, on_loss=on_loss))
    with sock:
        end.say(b"a line\n" * 5000)
        end.say(b"first ")
        act(end)
        kernel.wait_until(lambda: loss_of(sock) is not None, "the watcher has stepped in")
        if on_loss != "keep":
            kernel.wait_until(lambda: kernel.state_of(sock) != "CLOSE_WAIT")
        assert read_file(sock) == b"a line\n" * 5000 + b"first goodbye"
        assert sock.recv(1) == b""


@by_secure_and_wrap
def test_decrypted_bytes_survive_the_watcher_and_count_as_unread(
    tls: TlsPeer, context: ssl.SSLContext, way: Any
) -> None:
    sock, end = way(tls, context, Policy(grace=0.01))
    with sock:
        end.say(b"x" * 100)
        assert sock.recv(10) == b"x" * 10
        assert sock.pending() == 90
        end.fin()
        kernel.wait_until(lambda: loss_of(sock) is not None, "the watcher has stepped in")
        assert lost(sock).unread == 90
        assert sock.recv(100) == b"x" * 90
        assert sock.recv(100) == b""


@by_secure_and_wrap
@pytest.mark.parametrize("how", ["close", "loss"])
def test_decrypted_bytes_count_as_unread(
    tls: TlsPeer, context: ssl.SSLContext, way: Any, how: str
) -> None:
    sock, end = way(tls, context)
    with sock:
        end.say(b"x" * 100)
        assert sock.recv(10) == b"x" * 10
        if how == "close":
            sock.close()
            record = sock.close_report
        else:
            end.rst()
            wait_for_the_end(sock)
            with pytest.raises(OSError, match=r"."):
                sock.send(b"data")
            record = sock.loss
        assert record.unread == 90


@by_secure_and_wrap
@pytest.mark.parametrize("close", MODES, ids=repr)
def test_close_does_on_the_wire_what_the_policy_says(
    tls: TlsPeer, context23: ssl.SSLContext, close: Any, way: Any
) -> None:
    """With unread input, session tickets among it, and with a duplicate descriptor."""
    sock, end = way(tls, context23, Policy(close=close, watch=False))
    end.say(b"never read")
    assert readable(sock)
    duplicate = os.dup(sock.fileno())
    try:
        if isinstance(close, Drain):
            end.half_close()
        sock.close()
        assert end.read_to_end() == (b"", RESET if isinstance(close, Abort) else EOF)
        assert sock.close_report.reset is isinstance(close, Abort)
    finally:
        os.close(duplicate)


def test_close_sends_no_close_notify_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, version: str
) -> None:
    for policy in (None, QUIET):
        sock, end = connect(tls, certificates.client(version), policy)
        sock.close()
        assert end.read_to_end()[0] == b""


# The descriptor's number ------------------------------------------------------------------------


@contextlib.contextmanager
def strangers() -> Iterator[set[int]]:
    """Socket pairs, which take the numbers that are free. Nothing is to be read from them, or
    written to them, by anybody else."""
    data = b"a stranger's data" * 100
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(4) for end in socket.socketpair()]
        for end in ends:
            end.sendall(data)
            end.setblocking(False)
        yield {end.fileno() for end in ends}
        assert [end.recv(len(data) + 1) for end in ends] == [data] * len(ends)


@by_secure_and_wrap
@pytest.mark.parametrize("how", ["loss", "close"])
@by_end
def test_a_stranger_with_the_same_number_is_left_alone(
    tls: TlsPeer, context: ssl.SSLContext, way: Any, how: str, act: Any
) -> None:
    sock, end = way(tls, context)
    file = sock.makefile("rb")
    number = sock.fileno()
    act(end)
    wait_for_the_end(sock)
    if how == "loss":
        read_to_the_end(sock)
    else:
        file.close()
        sock.close()
    assert sock.fileno() == -1
    with strangers() as numbers:
        assert number in numbers
        uses: list[Callable[[Any], Any]] = [
            *READS,
            *WRITES,
            lambda sock: sock.pending(),
            lambda sock: sock.unwrap(),
            lambda sock: sock.do_handshake(),
            lambda sock: sock.shutdown(socket.SHUT_RDWR),
            lambda _: file.read(),
            lambda sock: sock.close(),
        ]
        for use in uses:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                use(sock)
        file.close()
        sock.close()


@by_secure_and_wrap
def test_a_child_forked_while_a_thread_reads_closes_its_descriptor(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any
) -> None:
    """That thread, which may not lose the descriptor's number, is not in the child."""

    def child() -> None:
        sock.close()
        assert number not in kernel.descriptors()

    sock, end = way(tls, context23)
    number = sock.fileno()
    reader = threading.Thread(target=sock.recv, args=[1])
    with sock:
        reader.start()
        try:
            kernel.wait_until_blocked(reader)
            in_child(child)
        finally:
            end.say(b"x")
            reader.join()
        assert loss_of(sock) is None


@by_secure_and_wrap
@pytest.mark.parametrize("timeout", [None, TIMEOUT], ids=["blocking", "timeout"])
def test_close_from_another_thread_wakes_a_blocked_read(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any, timeout: float | None
) -> None:
    for _ in range(5):
        sock, _ = way(tls, context23)
        sock.settimeout(timeout)
        reading = threading.Event()

        def read(sock: Any = sock, reading: threading.Event = reading) -> object:
            reading.set()
            return outcome(lambda sock: sock.recv(100), sock)

        reader = tls.begin(read)
        assert reading.wait(TIMEOUT)
        # In the system call, or about to be: either way it must come back.
        sock.close()
        with strangers():
            assert done(reader) == b"" or isinstance(done(reader), tuple)
