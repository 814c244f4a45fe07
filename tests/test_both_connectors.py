"""What both Connectors promise: the same test for the synchronous one, and for the asynchronous one
on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import kernel
import pytest
import tenacity
from listening import listening
from loops import LOOPS
from peer import EOF, RESET, TIMEOUT, Peer
from tls_peer import NAME, TlsPeer

import safesock
import safesock.asyncio
from safesock import LocalPortBusyError, Loss, Reconnect, ReconnectError
from safesock.events import Closed, Connected, Retrying

Result = TypeVar("Result")
QUICK = tenacity.wait_none()


class Line(Protocol):
    """A connection, as a test sees it."""

    def send(self, data: bytes) -> None: ...
    def recv(self, count: int) -> bytes: ...
    def local(self) -> Any: ...
    def loss(self) -> Loss | None: ...


class SyncLine:
    def __init__(self, sock: safesock.SafeSocket) -> None:
        self._sock = sock
        self._local = None
        with contextlib.suppress(OSError):  # Another thread's connect may have closed it by now.
            self._local = sock.getsockname()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def recv(self, count: int) -> bytes:
        return self._sock.recv(count)

    def local(self) -> Any:
        return self._local

    def loss(self) -> Loss | None:
        return self._sock.loss


class SyncFace:
    """The synchronous Connector."""

    def __init__(self, address: Any, *, on_connect: Any = None, **options: Any) -> None:
        hook = on_connect and (lambda sock: on_connect(SyncLine(sock)))
        self._connector = safesock.Connector(address, on_connect=hook, **options)
        self.confirm = self._connector.confirm
        self.close = self._connector.close
        self._lines: list[Line] = []  # Held, so that none ends because nobody refers to it.

    def connect(self) -> Line:
        self._lines.append(SyncLine(self._connector.connect()))
        return self._lines[-1]

    def turns(self) -> Iterator[Line]:
        for sock in self._connector:
            yield SyncLine(sock)

    def over(self) -> None:
        self._connector.close()


class AsyncLine:
    def __init__(
        self,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        streams: tuple[asyncio.StreamReader, safesock.asyncio.SafeStreamWriter],
    ) -> None:
        self._run = run
        self._reader, self._writer = streams

    def send(self, data: bytes) -> None:
        async def send() -> None:
            self._writer.write(data)
            await self._writer.drain()

        self._run(send())

    def recv(self, count: int) -> bytes:
        return bytes(self._run(self._reader.read(count)))

    def local(self) -> Any:
        return self._writer.get_extra_info("sockname")

    def loss(self) -> Loss | None:
        return self._writer.loss


class AsyncFace:
    """The asynchronous Connector, whose loop runs in a thread of its own."""

    loop_name: str

    def __init__(self, address: Any, *, on_connect: Any = None, **options: Any) -> None:
        async def hook(*streams: Any) -> None:
            await asyncio.to_thread(on_connect, AsyncLine(self._run, streams))

        self._connector = safesock.asyncio.Connector(
            address, on_connect=on_connect and hook, **options
        )
        self._loop = LOOPS[self.loop_name]()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._lines: list[Line] = []

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(3 * TIMEOUT)

    def connect(self) -> Line:
        self._lines.append(AsyncLine(self._run, self._run(self._connector.connect())))
        return self._lines[-1]

    def turns(self) -> Iterator[Line]:
        iterator = aiter(self._connector)
        try:
            while (streams := self._run(self._next(iterator))) is not None:
                yield AsyncLine(self._run, streams)
        finally:
            del iterator  # As the `async for` does that is left.

    async def _next(self, iterator: Any) -> Any:
        return await anext(iterator, None)

    def confirm(self) -> None:
        self._connector.confirm()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._connector.close)

    def over(self) -> None:
        async def close() -> None:
            async with self._connector:
                pass

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class OnAsyncio(AsyncFace):
    loop_name = "asyncio"


class OnUvloop(AsyncFace):
    loop_name = "uvloop"


Face = SyncFace | AsyncFace
FACES: dict[str, Any] = {"sync": SyncFace, "asyncio": OnAsyncio, "uvloop": OnUvloop}


@pytest.fixture(params=list(FACES.values()), ids=list(FACES))
def made(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes connectors, and ends them."""
    faces: list[Face] = []

    def make(address: Any, **options: Any) -> Face:
        faces.append(request.param(address, **options))
        return faces[-1]

    yield make
    for face in faces:
        face.over()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def given_up(face: Face, count: int) -> ReconnectError:
    with pytest.raises(ReconnectError) as caught:
        face.connect()
    assert len(caught.value.attempts) == count
    return caught.value


def test_a_connection_talks_and_tells_its_loss(made: Any, peer: Peer) -> None:
    line = made(peer.address).connect()
    end = peer.accept()
    line.send(b"question")
    assert end.read(8) == b"question"
    end.say(b"answer")
    assert line.recv(100) == b"answer"
    end.fin()
    assert line.recv(100) == b""
    assert line.loss().cause is safesock.Cause.FIN
    assert kernel.state(line.local(), peer.address) != "CLOSE_WAIT"


def test_the_previous_connection_is_closed_before_the_next_is_dialled(
    made: Any, peer: Peer
) -> None:
    local = ("127.0.0.1", free_port())
    face = made(peer.address, local_address=local)
    ends = []
    for _ in range(3):
        assert face.connect().local() == local
        face.confirm()
        ends.append(peer.accept())
        assert peer_of(ends[-1]) == local
        assert [end.read_to_end() for end in ends[:-1]] == (len(ends) - 1) * [(b"", EOF)]


def test_abort_previous_resets_it(made: Any, peer: Peer) -> None:
    local = ("127.0.0.1", free_port())
    face = made(peer.address, local_address=local, abort_previous=True)
    first = face.connect()
    end = peer.accept()
    second = face.connect()
    assert end.read_to_end() == (b"", RESET)
    assert peer_of(peer.accept()) == second.local() == first.local() == local


def test_one_connection_per_turn(made: Any, peer: Peer) -> None:
    reconnect = Reconnect(attempts=10, wait=QUICK)
    face = made(peer.address, reconnect=reconnect)
    ends = []
    for line in face.turns():
        ends.append(peer.accept())
        ends[-1].say(b"%d" % len(ends))
        assert line.recv(1) == b"%d" % len(ends)
        line.send(b"bye")
        assert ends[-1].read(3) == b"bye"
        if len(ends) == 3:
            break
    assert [end.read_to_end() for end in ends] == 3 * [(b"", EOF)]


def test_attempts_are_counted_and_kept(made: Any) -> None:
    address = ("127.0.0.1", free_port())
    face = made(address, reconnect=Reconnect(attempts=3, wait=QUICK))
    error = given_up(face, 3)
    assert {type(attempt) for attempt in error.attempts} == {ConnectionRefusedError}
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    given_up(face, 3)  # The budget stays used up...
    face.confirm()
    given_up(face, 3)  # ...until now.


def test_a_peer_that_drops_at_once_uses_up_the_budget(made: Any, peer: Peer) -> None:
    face = made(peer.address, reconnect=Reconnect(attempts=2, wait=QUICK))
    for _ in range(2):
        line = face.connect()
        peer.accept().fin()
        assert line.recv(1) == b""
    given_up(face, 2)


def test_the_deadline_holds_against_a_peer_that_never_answers(made: Any) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # Its queue is full: it answers no SYN any more.
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        face = made(listener.getsockname(), reconnect=Reconnect(deadline=0.5), timeout=TIMEOUT)
        error = given_up(face, 1)
    assert isinstance(error.attempts[0], TimeoutError)


def test_a_certificate_that_does_not_verify_is_not_tried_again(made: Any, tls: TlsPeer) -> None:
    import ssl

    def refuse() -> None:
        end = tls.accept_tls()
        with contextlib.suppress(ssl.SSLError, OSError, EOFError):
            end.handshake()

    refusing = tls.begin(refuse)
    face = made(tls.address, ssl_context=ssl.create_default_context(), server_hostname=NAME)
    error = given_up(face, 1)
    assert isinstance(error.attempts[0], ssl.SSLCertVerificationError)
    refusing.result(TIMEOUT)


def test_tls(made: Any, tls: TlsPeer, certificates: Any) -> None:
    shaking = tls.begin(tls.accept_and_shake)
    face = made(tls.address, ssl_context=certificates.client(), server_hostname=NAME)
    line = face.connect()
    end = shaking.result(TIMEOUT)
    end.say(b"hello")
    assert line.recv(5) == b"hello"


def test_on_connect_is_first_and_may_refuse(made: Any, peer: Peer) -> None:
    tries = []

    def greet(line: Line) -> None:
        tries.append(line)
        if len(tries) < 3:
            raise PermissionError("not this one")
        line.send(b"hello")

    face = made(peer.address, on_connect=greet, reconnect=Reconnect(wait=QUICK))
    line = face.connect()
    refused = [peer.accept() for _ in range(2)]
    assert [end.read_to_end() for end in refused] == 2 * [(b"", EOF)]
    assert peer.accept().read(5) == b"hello"
    assert line.loss() is None


def test_on_connect_is_cut(made: Any, peer: Peer) -> None:
    """It waits for an answer that never comes."""
    face = made(
        peer.address,
        on_connect=lambda line: line.recv(1),
        reconnect=Reconnect(deadline=0.5),
        timeout=None,
    )
    error = given_up(face, 1)
    assert isinstance(error.attempts[0], TimeoutError)
    assert peer.accept().read_to_end() == (b"", EOF)


def test_connect_within_on_connect_is_refused(peer: Peer) -> None:
    """By the connector that calls it: of one task, or one thread."""
    errors: list[str] = []

    async def hook(*_: object) -> None:
        with pytest.raises(RuntimeError, match="its own connector") as caught:
            await connector.connect()
        errors.append(str(caught.value))

    connector = safesock.asyncio.Connector(peer.address, on_connect=hook)

    async def main() -> None:
        async with connector:
            await connector.connect()

    asyncio.run(main())

    def greet(_: object) -> None:
        with pytest.raises(RuntimeError, match="its own connector") as caught:
            synchronous.connect()
        errors.append(str(caught.value))

    with safesock.Connector(peer.address, on_connect=greet) as synchronous:
        synchronous.connect()
    assert errors[0] == errors[1]


@pytest.mark.parametrize("where", ["connecting", "waiting"])
def test_close_ends_whoever_is_in_connect(made: Any, peer: Peer, where: str) -> None:
    reached = threading.Event()

    def waits(_: object) -> float:
        reached.set()
        return 3 * TIMEOUT

    def greet(line: Line) -> None:
        if where == "waiting":
            raise ConnectionError("so that it waits")
        reached.set()
        line.recv(1)

    reconnect = Reconnect(deadline=10 * TIMEOUT, wait=waits)
    face = made(peer.address, on_connect=greet, reconnect=reconnect, timeout=None)
    with ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(face.connect)
        assert reached.wait(TIMEOUT)
        face.close()
        with pytest.raises(ConnectionAbortedError):
            connecting.result(TIMEOUT)
    with pytest.raises(ConnectionAbortedError):
        face.connect()


def test_two_at_once_take_turns(made: Any, peer: Peer) -> None:
    face = made(peer.address)
    with ThreadPoolExecutor(2) as threads:
        lines = [call.result(TIMEOUT) for call in [threads.submit(face.connect) for _ in range(2)]]
    ends = [peer.accept(), peer.accept()]
    assert ends[0].read_to_end() == (b"", EOF)
    (alive,) = [line for line in lines if line.loss() is None and line.local() == peer_of(ends[1])]
    alive.send(b"here")
    assert ends[1].read(4) == b"here"


def peer_of(end: Any) -> Any:
    return end.sock.getpeername()


def test_who_holds_the_port_is_named(made: Any, peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        local = holder.getsockname()
        face = made(peer.address, local_address=local, reconnect=Reconnect(attempts=1))
        (error,) = given_up(face, 1).attempts
    assert isinstance(error, LocalPortBusyError)
    assert [one.state for one in error.holders] == ["LISTEN"]


WRONG: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("localhost",), {}),
    ((("localhost", 0),), {}),
    ((("", 80),), {}),
    ((("127.0.0.1\0.example.com", 80),), {}),
    ((("localhost", 80),), {"local_address": ("nowhere", 1)}),
    ((("localhost", 80),), {"reconnect": 3}),
    ((("localhost", 80),), {"timeout": 0}),
    ((("localhost", 80),), {"server_hostname": "x"}),
    ((("localhost", 80),), {"abort_previous": 1}),
    ((("localhost", 80),), {"policy": "abort"}),
    ((("localhost", 80),), {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}),
]


@pytest.mark.parametrize(("arguments", "options"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_raise_the_same(arguments: Any, options: Any) -> None:
    errors = []
    for kind in (safesock.Connector, safesock.asyncio.Connector):
        with pytest.raises((TypeError, ValueError)) as caught:
            kind(*arguments, **options)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def _takes_nothing() -> None: ...


def _takes_three(_a: object, _b: object, _c: object) -> None: ...


@pytest.mark.parametrize("wrong", ["login", _takes_nothing, _takes_three])
def test_an_on_connect_that_cannot_be_called_is_refused(wrong: Any) -> None:
    for kind in (safesock.Connector, safesock.asyncio.Connector):
        with pytest.raises(TypeError, match="on_connect takes a function of"):
            kind(("localhost", 80), on_connect=wrong)


def test_a_coroutine_function_is_for_asyncio_alone() -> None:
    async def log_in(*_: object) -> None: ...

    safesock.asyncio.Connector(("localhost", 80), on_connect=log_in)
    with pytest.raises(TypeError, match=r"safesock\.asyncio has coroutines"):
        safesock.Connector(("localhost", 80), on_connect=log_in)


# Events -------------------------------------------------------------------------------------------


def test_attempts_are_told(made: Any, peer: Peer) -> None:
    local = ("127.0.0.1", free_port())
    options = {"local_address": local, "reconnect": Reconnect(attempts=3, wait=QUICK)}
    face = made(peer.address, **options)
    with listening(peer.address) as told:
        with peer.refusing():
            error = given_up(face, 3)
        tries = ["Connecting", "Retrying", "Connecting", "Retrying", "Connecting"]
        assert told.kinds() == [*tries, "BudgetExhausted"]
    retries = [event for event in told.events if isinstance(event, Retrying)]
    assert [(one.attempt, one.error) for one in retries] == [
        (number + 1, one) for number, one in enumerate(error.attempts[:2])
    ]
    for event in (*retries, told.events[-1]):
        assert (event.connection, event.local, event.peer) == (None, local, peer.address)
    assert told.events[-1].error is error


def test_what_is_not_retried_is_told(made: Any, peer: Peer) -> None:
    face = made(peer.address, reconnect=Reconnect(retry=tenacity.retry_if_exception_type(KeyError)))
    with listening(peer.address) as told, peer.refusing():
        error = given_up(face, 1)
    assert told.kinds() == ["Connecting", "BudgetExhausted"]
    assert told.events[-1].error is error


def test_the_wait_is_told_before_it(made: Any, peer: Peer) -> None:
    face = made(peer.address, reconnect=Reconnect(wait=tenacity.wait_fixed(25)))
    with listening(peer.address) as told, ThreadPoolExecutor(1) as pool:
        with peer.refusing():
            connecting = pool.submit(face.connect)
            assert told.wait_for(Retrying).wait == 25
        face.close()
        with pytest.raises(ConnectionAbortedError):
            connecting.result(TIMEOUT)


def test_a_connection_names_the_one_before(made: Any, peer: Peer) -> None:
    face = made(peer.address)
    with listening(peer.address) as told:
        for turn in (1, 2, 3):
            line = face.connect()
            face.confirm()
            peer.accept().fin()
            assert line.recv(1) == b""
            told.wait_for(Closed, turn)
        numbers = list(dict.fromkeys(event.connection for event in told.events))
        before = [event.previous for event in told.events if isinstance(event, Connected)]
        assert before == [None, *numbers[:-1]]
        with peer.refusing():
            face.confirm()
            with ThreadPoolExecutor(1) as pool:
                connecting = pool.submit(face.connect)
                assert told.wait_for(Retrying).connection == numbers[-1]
                face.close()
                with pytest.raises(ConnectionAbortedError):
                    connecting.result(TIMEOUT)
