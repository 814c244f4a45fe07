"""Random arguments: refused at once in words that name them, or kept, and kept as they are."""

from __future__ import annotations

import copy
import pickle
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

import fuzzing
import kernel
import pytest
from fuzzing import NUMBERS, TEXTS, VALUES, each_length, hold, is_number, plain
from hypothesis import strategies as st
from peer import TIMEOUT, Peer

import safesock
import safesock.asyncio
from safesock import Abort, Drain, Graceful, KeepAlive, Linger, Policy, Reconnect
from safesock._policy import CloseMode

MOST = 2147483.647
MODES = st.sampled_from([Graceful(), Drain(1), Linger(3), Abort()])
KEEPALIVES = st.sampled_from([KeepAlive(), KeepAlive(1, 2, 3)])
# What each parameter takes, by the documentation.
Right = Callable[[Any], bool]


def seconds(least: float) -> Right:
    return lambda value: is_number(value) and least <= plain(value) <= MOST


def above_0(value: Any) -> bool:
    return is_number(value) and 0 < plain(value) <= MOST


def whole(most: int) -> Right:
    def right(value: Any) -> bool:
        return is_number(value) and 1 <= plain(value) <= most and plain(value) % 1 == 0

    return right


def or_none(right: Right) -> Right:
    return lambda value: value is None or right(value)


def a(*kinds: type) -> Right:
    return lambda value: isinstance(value, kinds)


PARAMETERS: dict[type, dict[str, tuple[Right, st.SearchStrategy[Any]]]] = {
    Drain: {"timeout": (seconds(0), NUMBERS)},
    Linger: {"seconds": (whole(32767), NUMBERS)},
    KeepAlive: {
        "idle": (whole(32767), NUMBERS),
        "interval": (whole(32767), NUMBERS),
        "count": (whole(127), NUMBERS),
    },
    Policy: {
        "close": (a(Graceful, Drain, Linger, Abort), MODES),
        "on_loss": (
            lambda value: isinstance(value, str) and plain(value) in ("close", "release", "keep"),
            TEXTS,
        ),
        "watch": (a(bool), st.booleans()),
        "grace": (seconds(0), NUMBERS),
        "reuse_address": (or_none(a(bool)), st.booleans()),
        "keepalive": (or_none(a(KeepAlive)), KEEPALIVES),
        "user_timeout": (or_none(seconds(0.001)), NUMBERS),
        "nodelay": (or_none(a(bool)), st.booleans()),
    },
    Reconnect: {
        "attempts": (whole(2**31 - 1), NUMBERS),
        "deadline": (above_0, NUMBERS),
        "stable_after": (above_0, NUMBERS),
    },
}


def arguments_for(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Of each parameter nothing, what it may take, or anything."""
    each = {name: likely | VALUES for name, (_, likely) in PARAMETERS[kind].items()}
    return st.fixed_dictionaries({}, optional=each)


def refusal(make: Callable[..., object], arguments: dict[str, Any]) -> tuple[Any, str]:
    """What has been made, or why not."""
    try:
        return make(**arguments), ""
    except (TypeError, ValueError) as error:
        return None, str(error)


def is_itself(value: Any) -> None:
    """Whatever is done with it."""
    same = [copy.copy(value), copy.deepcopy(value), value.__replace__()]
    same += [pickle.loads(pickle.dumps(value, one)) for one in range(pickle.HIGHEST_PROTOCOL + 1)]
    if sys.version_info >= (3, 13):
        same.append(copy.replace(value))
    if not isinstance(value, Reconnect):  # Of tenacity's strategies not all are written as made.
        same.append(eval(repr(value), vars(safesock)))
    for one in same:
        assert type(one) is type(value)
        assert one == value
        assert hash(one) == hash(value)
        assert repr(one) == repr(value)


@pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
@each_length(30, 150)
def test_a_value_is_refused_by_name_or_kept(kind: type, examples: int) -> None:
    def claim(arguments: dict[str, Any]) -> None:
        wrong = [name for name, value in arguments.items() if not PARAMETERS[kind][name][0](value)]
        made, why = refusal(kind, arguments)
        assert bool(why) == bool(wrong), (why, wrong)
        if why:
            assert [name for name in wrong if f"{kind.__name__}({name})" in why] or "Abort()" in why
            assert " takes " in why or "Abort()" in why
            return
        is_itself(made)
        for name, value in arguments.items():
            kept = getattr(made, name)
            assert kept == plain(value)
            assert type(kept) in (bool, int, float, str, type(None), type(value))

    hold(examples, claim, arguments_for(kind))


def a_policy() -> st.SearchStrategy[Policy]:
    def right(kind: type, name: str) -> st.SearchStrategy[Any]:
        is_right, likely = PARAMETERS[kind][name]
        return likely.filter(is_right)

    keepalives = st.builds(KeepAlive, **{one: right(KeepAlive, one) for one in KeepAlive._names})
    modes: st.SearchStrategy[CloseMode] = (
        st.sampled_from([Graceful(), Abort()])
        | st.builds(Drain, right(Drain, "timeout"))
        | st.builds(Linger, right(Linger, "seconds"))
    )
    fields = {name: right(Policy, name) for name in Policy._names}
    fields |= {"close": modes, "keepalive": st.none() | keepalives}
    fields["on_loss"] = st.sampled_from(["close", "release", "keep"])
    for name in ("reuse_address", "user_timeout", "nodelay"):
        fields[name] = st.none() | fields[name]
    return st.builds(Policy, **fields)


@each_length(12, 150)
def test_what_is_kept_works(peer: Peer, examples: int) -> None:
    """Its options are the kernel's, and a connection lives and ends."""

    def claim(policy: Policy) -> None:
        with peer.connected(policy) as (sock, end):
            options_are_set(sock, policy)
            sock.sendall(b"question")
            assert end.read(8) == b"question"
            end.say(b"answer")
            assert sock.recv(6) == b"answer"
            end.fin()
            assert sock.recv(6) == b""
            assert sock.loss is not None
        assert sock.fileno() == -1
        assert sock.close_report is not None
        assert sock.close_report.mode == policy.close
        peer.ends.clear()

    # The watcher's own are made once.
    with safesock.create_connection(peer.address, TIMEOUT, policy=Policy(grace=0)) as first:
        peer.accept().close()
        kernel.wait_until(lambda: first.loss is not None, "the watcher has come")
    before = kernel.descriptors()
    hold(examples, claim, a_policy())
    assert kernel.left_open(before) == []


def options_are_set(sock: socket.socket, policy: Policy) -> None:
    def told(level: int, name: int) -> int:
        return socket.socket.getsockopt(sock, level, name)

    if policy.keepalive is not None:
        assert told(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert told(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == policy.keepalive.idle
        assert told(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == policy.keepalive.interval
        assert told(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == policy.keepalive.count
    if policy.user_timeout is not None:
        milliseconds = told(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert milliseconds == round(policy.user_timeout * 1000)
    if policy.nodelay is not None:
        assert told(socket.IPPROTO_TCP, socket.TCP_NODELAY) == policy.nodelay
    if policy.reuse_address is not None:
        assert told(socket.SOL_SOCKET, socket.SO_REUSEADDR) == policy.reuse_address


# Connectors, enforce, audit ---------------------------------------------------------------------

HOSTS = TEXTS | st.sampled_from(["127.0.0.1", "::1", "localhost", "a..b", "a" * 64, "x\0y", ""])
PORTS = st.integers(-1, 65537) | st.sampled_from(["80", "http", "+80", " 80", "80\0", "\uff19", ""])
PAIRS = st.tuples(HOSTS, PORTS) | st.tuples(HOSTS | VALUES, PORTS | VALUES) | VALUES
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "local_address": PAIRS,
    "policy": st.just(Policy()) | MODES | VALUES,
    "reconnect": st.just(Reconnect()) | VALUES,
    "timeout": NUMBERS | VALUES,
    "ssl_context": st.just(CONTEXT) | st.none() | VALUES,
    "server_hostname": HOSTS | VALUES,
    "on_connect": st.just(print) | st.none() | VALUES,
    "abort_previous": st.booleans() | VALUES,
}


@pytest.mark.parametrize("kind", [safesock.Connector, safesock.asyncio.Connector], ids=repr)
@each_length(40, 300)
def test_a_connector_says_which_argument_is_wrong(kind: Any, examples: int) -> None:
    def claim(address: Any, arguments: dict[str, Any]) -> None:
        made, why = refusal(lambda **given: kind(address, **given), arguments)
        if why:
            assert [name for name in ("address", *arguments) if why.startswith(name)], why
            assert " takes " in why
            return
        host, port = address
        assert repr(host) in repr(made)
        assert 1 <= int(port) <= 65535 if str(port).isdecimal() else port.isascii()
        assert arguments.get("reconnect") is None or type(arguments["reconnect"]) is Reconnect
        made.close()

    hold(examples, claim, PAIRS, st.fixed_dictionaries({}, optional=ARGUMENTS))


@each_length(30, 150)
def test_enforce_says_which_argument_is_wrong(examples: int) -> None:
    def claim(arguments: dict[str, Any]) -> None:
        made, why = refusal(safesock.enforce, arguments)
        if why:
            assert [name for name in arguments if name in why.lower()]
            assert " takes " in why or "Policy(watch=False)" in why
        else:
            made.remove()

    fields: dict[str, st.SearchStrategy[Any]] = {
        "policy": a_policy() | VALUES,
        "only": st.just(bool) | st.none() | VALUES,
        # A thread each, where it is right.
        "sweep": VALUES.filter(lambda value: not seconds(0.1)(value)),
    }
    hold(examples, claim, st.fixed_dictionaries({}, optional=fields))


@each_length(30, 150)
def test_audit_takes_the_number_of_a_process(examples: int) -> None:
    def claim(pid: Any) -> None:
        try:
            _, why = refusal(safesock.audit, {"pid": pid})
        except (ProcessLookupError, PermissionError):
            why = ""
        is_one = pid is None or (type(pid) is not bool and isinstance(pid, int) and not pid < 1)
        assert bool(why) != is_one
        assert not why or why.startswith("audit(pid) takes the number of a process, or None: not ")

    numbers = st.integers().filter(lambda pid: not 0 < pid < 2**22)  # Not those that are there.
    hold(examples, claim, numbers | VALUES | st.just(10**300))


# What these have found --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Drain(10**5000),
        lambda: Linger(-(10**5000)),
        lambda: Policy(grace=10**5000),
        lambda: Policy(close=fuzzing.Speechless()),  # type: ignore[arg-type]
        lambda: Reconnect(deadline=10**5000),
        lambda: safesock.Connector(("localhost", 10**5000)),
        lambda: safesock.audit(-(10**5000)),
        lambda: safesock.wrap(fuzzing.Speechless()),  # type: ignore[call-overload]
    ],
)
def test_what_has_no_words_is_refused_as_the_rest(make: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"takes .*: not <"):
        make()


def test_a_word_that_only_seems_to_be_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Policy"):
        Policy(on_loss=fuzzing.Agrees())  # type: ignore[arg-type]


def test_the_member_of_an_enum_is_kept_as_what_it_is() -> None:
    policy = Policy(Drain(fuzzing.Seconds.TWO), fuzzing.Word.KEEP, grace=fuzzing.Seconds.TWO)  # type: ignore[arg-type]
    assert repr(policy) == repr(Policy(Drain(2), "keep", grace=2))


@pytest.mark.parametrize(
    "port", ["80\0", " 80", "80 ", " 65616", "+-80", "\uff19", "http\n", "\udc80"]
)
def test_a_port_of_which_a_part_would_be_taken_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match="address takes a port number, or a service's name"):
        safesock.Connector(("127.0.0.1", port))


@pytest.mark.parametrize("name", ["a\0b", ".a", "a..b", "\udc80", "a" * 64])
def test_a_name_that_no_certificate_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="server_hostname takes the name of a host"):
        safesock.Connector(("127.0.0.1", 443), ssl_context=CONTEXT, server_hostname=name)


def test_a_local_address_with_a_null_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="local_address takes an IP address"):
        safesock.Connector(("127.0.0.1", 80), local_address=("::\0", 0))


def test_a_process_that_no_system_can_have_is_not_there() -> None:
    with pytest.raises(ProcessLookupError, match="there is no process"):
        safesock.audit(10**5000)
