"""`safesock connect`, as a process of its own, against peers whose every act is chosen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import ssl
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PIPE, PROGRAM, TIMEOUT, Command, in_terminal, running
from kernel import connections, wait_until
from peer import EOF, RESET, Peer, PeerEnd
from tls_peer import VERSIONS, Certificates, TlsPeer

from safesock import _signals

campaign = pytest.mark.campaign

# More than all buffers between two processes.
MUCH = b"".join(number.to_bytes(4, "big") for number in range(4_000_000))
FEW = ["--attempts", "2", "--deadline", "20"]


def to(peer: Peer, *options: str) -> list[str]:
    host, port = peer.address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return [*PROGRAM, "connect", *options, where]


@contextlib.contextmanager
def netcat(
    peer: Peer, *options: str, stdin: int | None = PIPE, trusting: Path | None = None
) -> Iterator[Command]:
    environment = {} if trusting is None else {"SSL_CERT_FILE": str(trusting)}
    with running(to(peer, *options), PIPE, PIPE, stdin, **environment) as command:
        yield command


@contextlib.contextmanager
def in_background(act: object, *arguments: object) -> Iterator[None]:
    """Does *act* in another thread, to its end."""
    assert callable(act)
    thread = threading.Thread(target=act, args=arguments)
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def port_that_is_free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """An address that nobody else can listen at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def in_shell(redirection: str, command: list[str]) -> list[str]:
    return ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]


# Copying ------------------------------------------------------------------------------------------


def test_it_copies_both_ways_and_tells_what_happens(peer46: Peer) -> None:
    everything = bytes(range(256)) * 10
    with netcat(peer46) as command:
        end = peer46.accept()
        command.say(everything)
        assert end.read(len(everything)) == everything
        end.say(everything[::-1])
        assert command.read(len(everything)) == everything[::-1]
        command.end_input()
        assert end.read_to_end() == (b"", EOF)
        end.say(b"after your FIN")
        assert command.read(14) == b"after your FIN"
        end.fin()
        status, output, errors = command.end()
    assert (status, output) == (0, "")
    address = r"\[::1\]:\d+" if ":" in peer46.address[0] else r"127\.0\.0\.1:\d+"
    assert re.fullmatch(
        rf"safesock: connected from {address} to {address}\n"
        r"safesock: ended: the peer closed; 0 bytes unacknowledged, 0 bytes unread\n",
        errors,
    )


def test_a_peer_that_does_not_read_can_be_read(peer: Peer) -> None:
    with netcat(peer) as command:
        end = peer.accept()
        with in_background(command.say, MUCH):
            end.say(b"first hear me out")
            assert command.read(17) == b"first hear me out"
            assert end.read(len(MUCH)) == MUCH
        command.end_input()
        end.fin()
        assert command.end().status == 0


def test_output_that_is_not_read_stops_only_the_output(peer: Peer) -> None:
    with netcat(peer) as command:
        end = peer.accept()
        with in_background(end.say, MUCH):
            wait_until(lambda: is_full(command), "the pipe is full")
            # There is room again, but not for all that it holds.
            assert command.read(8192) == MUCH[:8192]
            wait_until(lambda: is_full(command), "the pipe is full again")
            with in_background(command.say, b"x" * 300_000):
                assert end.read(300_000) == b"x" * 300_000
            assert command.read(len(MUCH) - 8192) == MUCH[8192:]
        command.end_input()
        end.fin()
        assert command.end()[:2] == (0, "")


def is_full(command: Command) -> bool:
    """Whether the pipe that is its stdout is."""
    assert command.process.stdout is not None
    waiting = fcntl.ioctl(command.process.stdout, termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, "little") >= 65536


# The end of input ---------------------------------------------------------------------------------


def open_null() -> int:
    return os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize(
    "kind",
    ["/dev/null", pytest.param("file", marks=campaign), pytest.param("closed", marks=campaign)],
)
def test_without_input_it_listens_until_the_peer_closes(
    kind: str, peer: Peer, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    source = {"/dev/null": "</dev/null", "file": f"<{tmp_path / 'empty'}", "closed": "<&-"}[kind]
    with running(in_shell(source, to(peer))) as command:
        end = peer.accept()
        assert end.read_to_end() == (b"", EOF)
        end.say(b"the time\n")
        end.fin()
        assert command.end()[:2] == (0, "the time\n")


def test_a_peer_that_speaks_and_closes_at_once_is_not_dialled_again(peer: Peer) -> None:
    with netcat(peer, stdin=None) as command:
        end = peer.accept()
        end.say(b"the time\n")
        end.fin()
        assert command.end()[:2] == (0, "the time\n")
    assert peer.nobody_waits()


def test_a_silent_peer_is_left_after_the_wait(peer: Peer) -> None:
    with netcat(peer, "--wait", "0.4") as command:
        end = peer.accept()
        command.say(b"hello")
        command.end_input()
        began = time.monotonic()
        assert end.read_to_end() == (b"hello", EOF)
        status, _, errors = command.end()
    assert time.monotonic() - began >= 0.4 - 0.01
    assert status == 0
    assert "ended: the peer was silent; closed by Graceful(); 0 bytes unack" in errors


@campaign
def test_the_wait_begins_anew_with_all_that_comes(peer: Peer) -> None:
    with netcat(peer, "--wait", "2") as command:
        end = peer.accept()
        command.end_input()
        end.read_to_end()
        for _ in range(4):
            time.sleep(1)
            end.say(b".")
            assert command.read(1) == b"."
        end.fin()
        assert "the peer closed" in command.end().errors


@campaign
def test_a_peer_that_reads_slowly_is_waited_for() -> None:
    options = ["-q", "--close", "abort", "--wait", "1"]
    with Peer(receive_buffer=4096) as small, netcat(small, *options) as command:
        end = small.accept()
        command.say(MUCH[:100_000])
        command.end_input()
        for place in range(0, 100_000, 12_500):  # Longer than the wait.
            assert end.read(12_500) == MUCH[place : place + 12_500]
            time.sleep(0.5)
        assert end.read_to_end() == (b"", EOF)
        assert command.end().status == 0


def test_bytes_lost_after_the_end_of_input_are_status_1() -> None:
    with Peer(receive_buffer=4096) as small, netcat(small, "-q") as command:
        end = small.accept()
        command.say(b"x" * 200_000)
        command.end_input()
        port = end.sock.getpeername()[1]
        wait_until(lambda: state_of_client(small, port) == "FIN_WAIT1", "its FIN waits behind data")
        end.rst()
        status, output, errors = command.end()
    assert (status, output) == (1, "")
    found = re.fullmatch(
        r"safesock: error: after the end of input: the peer reset it; (\d+) bytes unacknowledged, "
        r"0 bytes unread\n",
        errors,
    )
    assert found
    assert 0 < int(found[1]) <= 200_000


def state_of_client(peer: Peer, port: int) -> str | None:
    return connections(port).get(((peer.address[0], port), peer.address))


def test_bytes_that_the_close_drops_are_status_1() -> None:
    options = ["-q", "--close", "abort", "--wait", "0"]
    with Peer(receive_buffer=4096) as small, netcat(small, *options) as command:
        end = small.accept()
        command.say(b"x" * 200_000)
        command.end_input()
        status, _, errors = command.end()
        assert end.read_to_end()[1] == RESET
    assert status == 1
    assert "closed by Abort()" in errors
    assert errors.count("\n") == 1


# Coming back --------------------------------------------------------------------------------------


def test_it_comes_back_from_the_same_port_and_sends_nothing_twice(peer: Peer) -> None:
    port = port_that_is_free()
    with netcat(peer, "--local-port", str(port)) as command:
        for text in (b"one", b"two"):
            end = peer.accept()
            assert end.sock.getpeername()[1] == port
            command.say(text)
            assert end.read(len(text)) == text
            end.say(text.upper())
            assert command.read(len(text)) == text.upper()
            if text == b"one":
                end.fin()
        command.end_input()
        end.fin()
        status, output, errors = command.end()
    assert (status, output) == (0, "")
    news = [line.removeprefix("safesock: ").split(";")[0] for line in errors.splitlines()]
    connected = f"connected from 127.0.0.1:{port} to 127.0.0.1:{peer.address[1]}"
    again = [connected, "lost: the peer closed"]
    assert [line for line in news if "trying" not in line] == [
        *again,
        connected,
        "ended: the peer closed",
    ]
    assert len([line for line in news if re.fullmatch(r"trying again in \d\.\d s", line)]) == 1


@pytest.mark.parametrize("how", ["fin", pytest.param("rst", marks=campaign)])
def test_what_send_had_not_accepted_goes_to_the_next_connection(how: str, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(MUCH)
    with (
        Peer(receive_buffer=8192) as small,
        open(tmp_path / "input", "rb") as file,
        netcat(small, stdin=file.fileno()) as command,
    ):
        first = small.accept()
        before = first.read(500_000)
        getattr(first, how)()
        second = small.accept()
        after, ending = second.read_to_end()
        second.fin()
        status, _, errors = command.end()
    assert (status, ending) == (0, EOF)
    assert MUCH.startswith(before)
    assert MUCH.endswith(after)
    accepted = len(MUCH) - len(after)
    assert accepted >= len(before)
    (unacknowledged,) = re.findall(r"lost: .*; (\d+) bytes unack", errors)
    # What the peer's kernel had, and the peer has not read, is acknowledged.
    assert accepted - int(unacknowledged) >= len(before)


def test_input_is_not_read_while_there_is_no_connection() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as stdin, open(writer, "wb", buffering=0) as giver:
        with Peer() as peer, netcat(peer, *FEW, stdin=reader) as command:
            end = peer.accept()
            peer.listener.close()
            end.fin()
            command.read_errors_until("lost")
            giver.write(b"for a connection")
            assert command.end().status == 1
        assert stdin.read(100) == b"for a connection"


# Giving up ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--attempts", "2"], "after 2 attempts: the limit is 2; the last: Connection"),
        pytest.param(
            ["--attempts", "99", "--deadline", "0.3"],
            "the deadline of 0.3 s leaves no time for",
            marks=campaign,
        ),
    ],
    ids=["attempts", "deadline"],
)
def test_a_budget_that_is_used_up_is_one_line_and_status_1(options: list[str], reason: str) -> None:
    with refusing() as address, running([*PROGRAM, "connect", *options, address]) as command:
        status, output, errors = command.end()
    *news, last = errors.splitlines()
    assert (status, output) == (1, "")
    assert last.startswith(f"safesock: error: no connection to {address} after ")
    assert reason in last
    assert f"safesock: attempt 1 of {options[1]}: [Errno 111] Connection refused; trying" in news[0]
    assert all(line.startswith("safesock: attempt ") for line in news)
    assert f"attempt {options[1]} of" not in errors  # There is no trying again after it.


@campaign
def test_a_local_port_that_is_held_is_told(peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with netcat(peer, "-q", "--attempts", "1", "--local-port", str(port)) as command:
            status, _, errors = command.end()
    assert status == 1
    assert errors.count("\n") == 1
    assert f"LocalPortBusyError: [Errno 98] bind: local port *:{port} is busy" in errors


@campaign
def test_a_name_that_can_be_none_is_told() -> None:
    name = "x" * 70 + ".invalid"  # Longer than DNS takes: nobody is asked.
    with running([*PROGRAM, "connect", "--attempts", "1", f"{name}:80"]) as command:
        status, _, errors = command.end()
    assert status == 2
    assert errors.count("\n") == 1
    assert "the host to connect to" in errors


# Signals and closed ends --------------------------------------------------------------------------

each_signal = pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=campaign)],
    ids=["SIGTERM", "SIGINT"],
)


@each_signal
@pytest.mark.parametrize(
    ("close", "seen"), [pytest.param("graceful", EOF, marks=campaign), ("abort", RESET)]
)
def test_a_signal_ends_the_connection_by_its_policy(
    number: int, status: int, close: str, seen: str, peer: Peer
) -> None:
    with netcat(peer, "-q", "--close", close) as command:
        end = peer.accept()
        command.say(b"hello")  # It is past its start, and waits for more.
        assert end.read(5) == b"hello"
        command.process.send_signal(number)
        assert command.end() == (status, "", "")
    assert end.read_to_end() == (b"", seen)


@pytest.mark.parametrize("close", ["drain", pytest.param("linger=1", marks=campaign)])
def test_drain_and_linger_are_carried_out_too(close: str, peer: Peer) -> None:
    with netcat(peer, "-q", "--close", close) as command:
        end = peer.accept()
        command.say(b"hello")
        assert end.read(5) == b"hello"
        command.process.terminate()
        assert end.read_to_end() == (b"", EOF)
        if close == "drain":
            assert command.process.poll() is None
        end.fin()
        assert command.end() == (143, "", "")


@campaign
def test_a_second_signal_ends_a_drain(peer: Peer) -> None:
    with netcat(peer, "-q", "--close", "drain=50") as command:
        end = peer.accept()
        command.say(b"hello")
        assert end.read(5) == b"hello"
        command.process.terminate()
        assert end.read_to_end() == (b"", EOF)
        command.process.send_signal(signal.SIGINT)
        assert command.end() == (130, "", "")


@campaign
@each_signal
def test_a_signal_while_waiting_to_try_again(number: int, status: int) -> None:
    options = ["--attempts", "99"]
    with refusing() as address, running([*PROGRAM, "connect", *options, address]) as command:
        command.read_errors_until("attempt 3 of 99")
        command.process.send_signal(number)
        ended = command.end()
    assert (ended.status, ended.output) == (status, "")
    assert all(line.startswith("safesock: attempt") for line in ended.errors.splitlines())


class SignalsAtItsEnd:
    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def collect_and_sleep(number: int, woken: int) -> None:
    SignalsAtItsEnd(number)
    assert select.select([woken], [], [], TIMEOUT)[0]
    time.sleep(TIMEOUT)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_while_an_object_is_collected_is_not_lost(
    number: int, expected: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    hook = sys.unraisablehook
    with pytest.raises(expected), _signals.raised() as woken:
        collect_and_sleep(number, woken)
    assert capsys.readouterr() == ("", "")
    assert sys.unraisablehook is hook
    assert handlers == [
        signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    ]
    assert signal.set_wakeup_fd(-1) == -1


@each_signal
def test_a_signal_while_connecting(number: int, status: int) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # Its backlog is full: nothing is answered any more.
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
            fillers = len(syn_sent_to(address))
            with running([*PROGRAM, "connect", f"127.0.0.1:{address[1]}"]) as command:
                wait_until(lambda: len(syn_sent_to(address)) > fillers, "it is connecting")
                command.process.send_signal(number)
                assert command.end() == (status, "", "")
            assert len(syn_sent_to(address)) <= fillers


def syn_sent_to(address: tuple[str, int]) -> list[object]:
    found = connections().items()
    return [ends for ends, state in found if (ends[1], state) == (address, "SYN_SENT")]


@each_signal
def test_a_signal_in_the_tls_handshake(number: int, status: int, peer: Peer) -> None:
    with netcat(peer, "--tls") as command:
        end = peer.accept()
        end.read(1)
        command.process.send_signal(number)
        assert command.end() == (status, "", "")
        assert end.read_to_end()[1] == EOF


@each_signal
def test_a_signal_while_nobody_reads_the_output(number: int, status: int, peer: Peer) -> None:
    with netcat(peer, "-q") as command:
        end = peer.accept()
        fill(end, command)
        command.process.send_signal(number)
        assert command.process.wait(TIMEOUT) == status  # Before its output is read.
        command.stop_reading()
        assert command.end() == (status, "", "")
    assert end.read_to_end() == (b"", EOF)


def fill(end: PeerEnd, command: Command) -> None:
    """The peer says so much that the pipe is full, and the socket's buffers too."""
    end.sock.setblocking(False)
    wait_until(lambda: not can_say(end) and is_full(command), "the pipe is full")
    end.sock.settimeout(TIMEOUT)


def can_say(end: PeerEnd) -> bool:
    try:
        return bool(end.sock.send(bytes(1_000_000)))
    except BlockingIOError:
        return False


@campaign
def test_a_signal_that_is_ignored_stays_so(peer: Peer) -> None:
    ignoring = ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *to(peer)]
    with running(ignoring, stdin=PIPE) as command:
        end = peer.accept()
        command.say(b"one")
        assert end.read(3) == b"one"
        command.process.terminate()
        command.say(b"two")
        assert end.read(3) == b"two"
        command.end_input()
        end.fin()
        assert command.end().status == 0


@pytest.mark.parametrize("when", ["idle", pytest.param("busy", marks=campaign)])
def test_a_reader_that_goes_ends_it_with_141(when: str, peer: Peer) -> None:
    with netcat(peer, "-q") as command:
        end = peer.accept()
        end.say(b"hello")
        assert command.read(5) == b"hello"
        if when == "idle":
            command.stop_reading()
            assert end.read_to_end() == (b"", EOF)
        else:
            fill(end, command)
            command.stop_reading()
        assert command.end() == (141, "", "")


@campaign
def test_closed_output_is_a_reader_that_has_gone(peer: Peer) -> None:
    with running(in_shell(">&-", to(peer, "-q")), stdin=PIPE) as command:
        end = peer.accept()
        command.say(b"hello")
        assert end.read(5) == b"hello"
        end.say(b"hello")
        assert command.end() == (141, "", "")
        assert end.read_to_end() == (b"", EOF)


@campaign
@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full"])
def test_news_that_nobody_can_read_is_no_reason_to_stop(how: str, peer: Peer) -> None:
    with running(in_shell(how, to(peer)), stdin=PIPE) as command:
        peer.accept().fin()
        end = peer.accept()
        command.say(b"hello")
        assert end.read(5) == b"hello"
        command.end_input()
        end.fin()
        assert command.end() == (0, "", "")


@pytest.mark.parametrize(
    ("redirection", "error"),
    [
        pytest.param("0>/dev/null", "[Errno 9] Bad file descriptor", marks=campaign),
        (">/dev/full", "[Errno 28] No space left on device"),
    ],
)
def test_input_or_output_that_cannot_be_used_is_one_line_and_status_2(
    redirection: str, error: str, peer: Peer
) -> None:
    with running(in_shell(redirection, to(peer, "-q"))) as command:
        end = peer.accept()
        end.say(b"hello")
        assert command.end() == (2, "", f"safesock: error: {error}\n")
        assert end.read_to_end() == (b"", EOF)


@pytest.mark.parametrize(
    ("key", "status"), [(b"\x04", 0), pytest.param(b"\x03", 130, marks=campaign)], ids=["^D", "^C"]
)
def test_in_a_terminal(key: bytes, status: int, peer: Peer) -> None:
    with in_terminal(to(peer)) as terminal:
        end = peer.accept()
        terminal.press(b"hello\n")
        assert end.read(6) == b"hello\n"
        terminal.press(key)
        assert end.read_to_end() == (b"", EOF)
        end.fin()
        ended = terminal.end()
    assert ended.status == status
    assert "Traceback" not in ended.output


# It waits, and does not spin ----------------------------------------------------------------------


def seconds_at_work(command: Command) -> float:
    fields = Path(f"/proc/{command.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(command: Command, seconds: float) -> bool:
    before = seconds_at_work(command)
    time.sleep(seconds)
    return seconds_at_work(command) - before < seconds / 4


@campaign
def test_it_waits_for_an_output_that_is_not_read_when_the_peer_has_gone(peer: Peer) -> None:
    said = MUCH[:150_000]  # The pipe, what it holds, and a rest that is unread.
    with netcat(peer, "-q") as command:
        end = peer.accept()
        port = end.sock.getpeername()[1]
        end.say(said)
        end.fin()
        # It keeps no peer waiting for its FIN, although it has not read to the end.
        open_still = ("ESTABLISHED", "CLOSE_WAIT")
        wait_until(lambda: state_of_client(peer, port) not in open_still, "its FIN")
        assert is_full(command)
        assert is_idle(command, 1)
        assert command.read(len(said)) == said
        command.process.terminate()
        assert command.end().status == 143


@campaign
@pytest.mark.parametrize("state", ["idle", "half-closed", "not read", "not written", "lost"])
def test_it_waits_without_work(state: str, peer: Peer) -> None:
    with netcat(peer, "-q", "--wait", "60", "--deadline", "600") as command:
        end = peer.accept()
        end.say(b"hello")
        assert command.read(5) == b"hello"
        with contextlib.ExitStack() as stack:
            if state == "half-closed":
                command.end_input()
                end.read_to_end()
            elif state == "not read":
                stack.enter_context(in_background(say_to, command))
            elif state == "not written":
                fill(end, command)
            elif state == "lost":
                peer.listener.close()
                end.fin()
            time.sleep(1)
            assert is_idle(command, 2)
            command.process.kill()
            command.process.wait(TIMEOUT)
        command.end()


def say_to(command: Command) -> None:
    with contextlib.suppress(BrokenPipeError):
        command.say(MUCH)


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusted(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    certificates.authority.cert_pem.write_to_path(str(file))
    return file


@pytest.fixture(params=["1.3", pytest.param("1.2", marks=campaign)], ids="TLS {}".format)
def tls23(certificates: Certificates, request: pytest.FixtureRequest) -> Iterator[TlsPeer]:
    """Once TLS 1.2, once 1.3."""
    context = certificates.server()
    context.maximum_version = VERSIONS[request.param]
    with TlsPeer(context) as one:
        yield one


def test_tls_copies_both_ways_also_after_close_notify(tls23: TlsPeer, trusted: Path) -> None:
    with netcat(tls23, "--tls", trusting=trusted) as command:
        end = tls23.accept_and_shake()
        with in_background(command.say, MUCH[:1_000_000]):
            assert end.read(1_000_000) == MUCH[:1_000_000]
        with in_background(end.say, MUCH[:1_000_000]):
            assert command.read(1_000_000) == MUCH[:1_000_000]
        command.end_input()
        assert end.read_tls_to_end() == b""
        with in_background(end.say, MUCH[:1_000_000]):
            assert command.read(1_000_000) == MUCH[:1_000_000]
        end.close_notify()
        status, output, errors = command.end()
    assert (status, output) == (0, "")
    assert errors.endswith("ended: the peer closed; 0 bytes unacknowledged, 0 bytes unread\n")


def test_what_comes_while_close_notify_is_sent_is_not_lost(tls23: TlsPeer, trusted: Path) -> None:
    with netcat(tls23, "--tls", stdin=None, trusting=trusted) as command:  # The input ends at once.
        end = tls23.accept_and_shake()
        end.say(MUCH[:100_000])
        assert command.read(100_000) == MUCH[:100_000]
        end.tls.write(b"bye")
        end.close_notify()  # In one segment.
        assert command.end()[:2] == (0, "bye")


def test_what_comes_with_the_end_of_the_handshake_is_not_lost(
    tls23: TlsPeer, trusted: Path
) -> None:
    with netcat(tls23, "--tls", trusting=trusted) as command:
        end = tls23.accept_tls()
        end.handshake_and_say(b"welcome")
        assert command.read(7) == b"welcome"
        command.end_input()
        end.close_notify()
        assert command.end()[:2] == (0, "")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("close_notify", "the peer closed;"),
        pytest.param("fin", "the peer closed without close_notify;", marks=campaign),
        pytest.param("rst", "the peer reset it;", marks=campaign),
    ],
)
def test_tls_comes_back(how: str, told: str, tls23: TlsPeer, trusted: Path) -> None:
    with netcat(tls23, "--tls", trusting=trusted) as command:
        for text in (b"one", b"two"):
            end = tls23.accept_and_shake()
            command.say(text)
            assert end.read(3) == text
            end.say(text.upper())
            assert command.read(3) == text.upper()
            if text == b"one":
                getattr(end, how)()
                assert f"lost: {told}" in command.read_errors_until("lost")
        command.end_input()
        end.close_notify()
        assert command.end()[:2] == (0, "")


@campaign
def test_tls_sends_what_was_not_accepted_on_the_next_connection(
    tls23: TlsPeer, trusted: Path
) -> None:
    tls23.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    much = MUCH[-8_000_000:]
    with netcat(tls23, "--tls", trusting=trusted) as command, in_background(say_all, command, much):
        first = tls23.accept_and_shake()
        before = first.read(300_000)
        first.rst()
        second = tls23.accept_and_shake()
        after = second.read_tls_to_end()
        second.close_notify()
        assert command.end()[:2] == (0, "")
    assert much.startswith(before)
    assert much.endswith(after)
    assert len(before) + len(after) <= len(much)


def say_all(command: Command, data: bytes) -> None:
    command.say(data)
    command.end_input()


def test_a_certificate_that_does_not_verify_is_not_retried(tls: TlsPeer) -> None:
    with netcat(tls, "--tls") as command:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            tls.accept_and_shake()
        status, output, errors = command.end()
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "after 1 attempt: this is not retried; the last: SSLCertVerificationError" in errors


@campaign
def test_a_refusal_by_tls_after_the_end_of_input_is_status_1(
    certificates: Certificates, trusted: Path
) -> None:
    context = certificates.server()
    context.verify_mode = ssl.CERT_REQUIRED  # TLS 1.3 says so when our handshake is done.
    certificates.authority.configure_trust(context)
    with (
        TlsPeer(context) as peer,
        netcat(peer, "--tls", "-q", stdin=None, trusting=trusted) as command,
    ):
        end = peer.accept_tls()
        with pytest.raises(ssl.SSLError):
            end.handshake()
        status, output, errors = command.end()
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "CERTIFICATE_REQUIRED" in errors.upper()


@campaign
def test_a_signal_cuts_tls_without_close_notify(tls: TlsPeer, trusted: Path) -> None:
    with netcat(tls, "--tls", "-q", trusting=trusted) as command:
        end = tls.accept_and_shake()
        command.say(b"hello")
        assert end.read(5) == b"hello"
        command.process.terminate()
        assert end.read_to_end() == (b"", EOF)
        assert command.end() == (143, "", "")
