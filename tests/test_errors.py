"""The exceptions: what they say, what they hold, and that both survive pickling and copying."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import TIMEOUT, Peer
from tls_peer import TlsPeer

import safesock
from safesock import Connector, LocalPortBusyError, PortHolder, ReconnectError

LOCAL, PEER = ("127.0.0.1", 40000), ("192.0.2.1", 443)
PASSING = ["FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "TIME_WAIT"]
STAYING = ["LISTEN", "CLOSE", "ESTABLISHED", "CLOSE_WAIT", "SYN_SENT", "SYN_RECV"]

LISTENING = PortHolder("LISTEN", ("0.0.0.0", 40000), None, 4711, "plc", 7)
LEAKED = PortHolder("CLOSE_WAIT", LOCAL, PEER, 4711, "plc", 8)
WAITING = PortHolder("TIME_WAIT", LOCAL, PEER, seconds_left=41.7)
LEAVING = PortHolder("LAST_ACK", LOCAL, PEER)
UNKNOWN = PortHolder("ESTABLISHED", LOCAL, PEER)
HOLDERS = [LISTENING, LEAKED, WAITING, LEAVING, UNKNOWN]
FIELDS = ("state", "local", "peer", "pid", "command", "descriptor", "seconds_left")


def busy(*holders: PortHolder, call: str = "bind", local: Any = LOCAL, peer: Any = PEER) -> Any:
    return LocalPortBusyError(errno.EADDRINUSE, "Address in use", call, local, peer, holders)


def noted(error: Any, *notes: str) -> Any:
    for note in notes:
        error.add_note(note)
    return error


def gave_up(*attempts: BaseException, reason: str = "the limit is 8") -> ReconnectError:
    return ReconnectError(("plc.example", 502), attempts, reason)


def refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def plainly(value: Any) -> Any:
    """What can be compared: exceptions are equal only to themselves."""
    if isinstance(value, (list, tuple)):
        return [plainly(one) for one in value]
    if not isinstance(value, BaseException):
        return value
    told = (type(value), str(value), repr(value), plainly(value.args))
    return (*told, {name: plainly(field) for name, field in vars(value).items()})


ERRORS: dict[str, BaseException] = {
    "busy": busy(*HOLDERS),
    "busy with nobody known": busy(),
    "busy at connect": busy(WAITING, call="connect", local=("::1", 1, 0, 0), peer=("::1", 2, 0, 0)),
    "busy with notes": noted(busy(WAITING), "at 192.0.2.1 port 443", "before, ..."),
    "gave up": gave_up(refused(), refused()),
    "gave up at once": gave_up(),
    "gave up with notes": noted(gave_up(refused()), "while the pump was started"),
    "gave up on a port": gave_up(
        TimeoutError("timed out"),
        noted(busy(LEAKED), "at 192.0.2.1 port 443"),
        noted(refused(), "at 192.0.2.2 port 443", "before, ..."),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        tenacity.TryAgain(),
        KeyboardInterrupt(),
        noted(busy(), "at 192.0.2.1 port 443"),
    ),
    "gave up, in another one": gave_up(gave_up(noted(busy(LISTENING), "note"))),
}
each_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


# All of them -------------------------------------------------------------------------------------


# With older ones the standard library's own TimeoutError comes back as an OSError.
@each_error
@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_pickled_with_all_it_holds(error: BaseException, protocol: int) -> None:
    assert plainly(pickle.loads(pickle.dumps(error, protocol))) == plainly(error)


@each_error
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_an_error_is_copied_with_all_it_holds(
    error: BaseException, duplicate: Callable[[Any], Any]
) -> None:
    again = duplicate(error)
    assert again is not error
    assert plainly(again) == plainly(error)


@each_error
def test_an_error_says_it_in_one_line(error: BaseException) -> None:
    assert str(error)
    assert str(error).splitlines() == [str(error)]


@each_error
def test_repr_names_the_type(error: BaseException) -> None:
    assert repr(error).startswith(f"{type(error).__name__}(")


@each_error
def test_every_error_is_caught_as_the_standard_library_s(error: BaseException) -> None:
    assert isinstance(error, OSError)
    assert isinstance(error, ConnectionError) is isinstance(error, ReconnectError)


@pytest.mark.parametrize(
    "untidy",
    [
        gave_up(ValueError("two\nlines")),
        gave_up(ValueError("\r\n\tdrawn\x0bup\x85 and down\u2028")),
        busy(PortHolder("LISTEN", LOCAL, None, 1, "two\nlines", 3)),
        gave_up(busy(PortHolder("LISTEN", LOCAL, None, 1, "two\nlines", 3))),
    ],
    ids=repr,
)
def test_what_others_wrote_is_put_into_one_line_too(untidy: BaseException) -> None:
    assert len(str(untidy).splitlines()) == 1


# PortHolder --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (LISTENING, "LISTEN of process 4711 (plc), descriptor 7"),
        (LEAKED, "CLOSE_WAIT with 192.0.2.1:443 of process 4711 (plc), descriptor 8"),
        (WAITING, "TIME_WAIT with 192.0.2.1:443 for 42 more seconds"),
        (LEAVING, "LAST_ACK with 192.0.2.1:443"),
        (PortHolder("TIME_WAIT", LOCAL, ("2001:db8::1", 443)), "TIME_WAIT with [2001:db8::1]:443"),
    ],
    ids=str,
)
def test_holder_says_who_and_how_long(holder: PortHolder, words: str) -> None:
    assert str(holder) == words


@pytest.mark.parametrize("holder", HOLDERS, ids=str)
def test_holder_is_a_value(holder: PortHolder) -> None:
    again = eval(repr(holder), vars(safesock))
    assert again == holder
    assert hash(again) == hash(holder)
    assert pickle.loads(pickle.dumps(holder)) == copy.copy(holder) == copy.deepcopy(holder)
    assert pickle.loads(pickle.dumps(holder)) == holder
    assert [one for one in HOLDERS if one == holder] == [holder]
    with pytest.raises(AttributeError, match="never changes"):
        holder.pid = 1


def test_holder_has_its_fields() -> None:
    holder = PortHolder("LISTEN", LOCAL, PEER, 1, "init", 2, 3.5)
    values: tuple[Any, ...] = ("LISTEN", LOCAL, PEER, 1, "init", 2, 3.5)
    assert tuple(getattr(holder, name) for name in FIELDS) == values
    assert PortHolder(**dict(zip(FIELDS, values, strict=True))) == holder
    assert PortHolder("LISTEN", LOCAL) == PortHolder("LISTEN", LOCAL, None, None, None, None, None)


@pytest.mark.parametrize("state", PASSING + STAYING)
def test_a_holder_passes_when_no_process_has_it_and_the_kernel_ends_it(state: str) -> None:
    assert PortHolder(state, LOCAL, PEER).passes is (state in PASSING)
    assert not PortHolder(state, LOCAL, PEER, 4711, "plc", 3).passes


# LocalPortBusyError ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            busy(LISTENING),
            "[Errno 98] bind: local port 127.0.0.1:40000 is busy: "
            "LISTEN of process 4711 (plc), descriptor 7",
        ),
        (
            busy(WAITING, call="connect"),
            "[Errno 98] connect: local port 127.0.0.1:40000 is busy towards 192.0.2.1:443: "
            "TIME_WAIT with 192.0.2.1:443 for 42 more seconds",
        ),
        (
            busy(local=("", 40000)),
            "[Errno 98] bind: local port *:40000 is busy: the system does not say what",
        ),
        (
            busy(LEAVING, WAITING, local=("::1", 40000, 0, 0)),
            "[Errno 98] bind: local port [::1]:40000 is busy: LAST_ACK with 192.0.2.1:443; "
            "TIME_WAIT with 192.0.2.1:443 for 42 more seconds",
        ),
    ],
    ids=["bind", "connect", "unknown", "several"],
)
def test_busy_says_which_call_which_port_and_what_holds_it(
    error: LocalPortBusyError, words: str
) -> None:
    assert str(error) == words.replace("98", str(errno.EADDRINUSE))


def test_busy_is_an_os_error_with_its_number() -> None:
    error = busy(LISTENING, call="connect")
    assert (error.errno, error.strerror) == (errno.EADDRINUSE, "Address in use")
    assert error.args == (errno.EADDRINUSE, "Address in use")
    assert (error.call, error.local, error.peer) == ("connect", LOCAL, PEER)
    assert error.holders == (LISTENING,)
    assert repr(error) == f"LocalPortBusyError({errno.EADDRINUSE}, 'Address in use')"
    assert type(busy(*iter(HOLDERS)).holders) is tuple


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EADDRNOTAVAIL])
def test_busy_is_made_of_the_system_s_refusal(number: int) -> None:
    system = OSError(number, os.strerror(number))
    error = LocalPortBusyError._of(system, "connect", LOCAL, PEER, [WAITING])
    assert type(error) is LocalPortBusyError
    assert (error.errno, error.strerror) == (number, os.strerror(number))
    assert (error.call, error.local, error.peer) == ("connect", LOCAL, PEER)
    assert error.holders == (WAITING,)


@settings(deadline=None, database=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            lambda state, pid, seconds: PortHolder(state, LOCAL, PEER, pid, None, None, seconds),
            st.sampled_from(PASSING * 3 + STAYING),
            st.sampled_from([None, None, None, 4711]),
            st.none() | st.floats(0, 60),
        ),
        max_size=3,
    )
)
def test_a_port_gets_free_when_all_that_hold_it_have_passed(holders: list[PortHolder]) -> None:
    error = busy(*holders)
    passes = bool(holders) and not [one for one in holders if not one.passes]
    assert error.passes is passes
    times = [one.seconds_left for one in holders]
    # Who waits for the longest of them must know all of them.
    if passes and None not in times:
        assert error.seconds_left == max(times, key=lambda seconds: seconds or 0.0)
    else:
        assert error.seconds_left is None


def test_the_last_to_go_says_when() -> None:
    brief = PortHolder("TIME_WAIT", LOCAL, PEER, seconds_left=3.0)
    assert busy(brief, WAITING).seconds_left == busy(WAITING, brief).seconds_left == 41.7
    assert busy(brief, LEAVING).seconds_left is None
    assert busy(brief, LISTENING).seconds_left is None
    assert busy().seconds_left is None


def test_the_kernel_s_refusal_is_pickled_with_the_process_that_holds_the_port(peer: Peer) -> None:
    # The listener has no SO_REUSEADDR.
    with pytest.raises(LocalPortBusyError) as caught:
        safesock.create_connection(peer.address, source_address=peer.address)
    error = caught.value
    assert (error.errno, error.call, error.local) == (errno.EADDRINUSE, "bind", peer.address)
    (holder,) = error.holders
    assert (holder.state, holder.local, holder.peer) == ("LISTEN", peer.address, None)
    assert (holder.pid, holder.descriptor) == (os.getpid(), peer.listener.fileno())
    assert not error.passes
    assert plainly(pickle.loads(pickle.dumps(error))) == plainly(error)
    assert f"process {os.getpid()} " in str(error)


# ReconnectError ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (gave_up(), "no connection to plc.example:502 after 0 attempts: the limit is 8"),
        (
            gave_up(TimeoutError("timed out"), refused()),
            "no connection to plc.example:502 after 2 attempts: the limit is 8; "
            "the last: ConnectionRefusedError: [Errno 111] Connection refused",
        ),
        (
            gave_up(TimeoutError(), reason="no time"),
            "no connection to plc.example:502 after 1 attempt: no time; the last: TimeoutError",
        ),
        (
            ReconnectError(("2001:db8::1", 502, 0, 0), [], "no time"),
            "no connection to [2001:db8::1]:502 after 0 attempts: no time",
        ),
    ],
    ids=["none", "two", "one", "IPv6"],
)
def test_giving_up_says_what_was_tried_and_what_came_last(
    error: ReconnectError, words: str
) -> None:
    assert str(error) == words.replace("111", str(errno.ECONNREFUSED))


def test_giving_up_holds_every_attempt_in_order() -> None:
    attempts = [refused(), TimeoutError("timed out"), busy(WAITING)]
    error = ReconnectError(("plc.example", 502), iter(attempts), "no time")
    assert error.attempts == attempts
    assert (error.address, error.reason) == (("plc.example", 502), "no time")
    attempts.clear()
    assert len(error.attempts) == 3


def test_a_real_certificate_s_refusal_is_pickled_among_the_attempts(tls: TlsPeer) -> None:
    # Of an authority that the client does not know.
    context = ssl.create_default_context()
    shaken = tls.begin(tls.accept_and_shake)
    connector = Connector(tls.address, ssl_context=context)
    with connector, pytest.raises(ReconnectError) as caught:
        connector.connect()
    assert isinstance(shaken.exception(TIMEOUT), (OSError, EOFError))
    (attempt,) = caught.value.attempts
    assert isinstance(attempt, ssl.SSLCertVerificationError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert plainly(again) == plainly(caught.value)
    assert again.attempts[0].verify_code == attempt.verify_code
    assert again.attempts[0].__notes__ == attempt.__notes__
