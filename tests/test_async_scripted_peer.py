"""The public peer for coroutines, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading

import pytest
import trio
from loops import Loop
from tls_peer import NAME, Certificates

from safesock.testing import AsyncScriptedPeer, End


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def test_its_acts_have_the_same_names(loop: Loop) -> None:
    async def main() -> None:
        async with AsyncScriptedPeer() as peer:
            reader, writer = await asyncio.open_connection(*peer.address)
            end = await peer.accept()
            await end.say(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.write(b"hello yourself")
            assert await end.read(14) == b"hello yourself"
            await end.goodbye_then_fin(b"bye")
            assert await reader.read() == b"bye"
            await close(writer)
            reader, writer = await asyncio.open_connection(*peer.address)
            await close(writer)
            assert await (await peer.accept()).read_to_end() == (b"", End.FIN)

    loop.run(main())


def test_the_fixture_is_for_any_loop(async_scripted_peer: AsyncScriptedPeer, loop: Loop) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection(*async_scripted_peer.address)
        end = await async_scripted_peer.accept()
        writer.write(b"one\r\ntwo")
        assert await end.read_until(b"\r\n") == b"one\r\n"
        assert await end.read(3) == b"two"
        end.fin()
        assert await reader.read() == b""
        await close(writer)

    loop.run(main())


def test_who_accepts_at_a_peer_that_is_closed_is_told_so(
    certificates: Certificates, loop: Loop
) -> None:
    async def main() -> None:
        for context in (None, certificates.server()):
            async with AsyncScriptedPeer(tls=context) as peer:
                accepting = asyncio.create_task(peer.accept())
                await asyncio.sleep(0)
                peer.close()
                with pytest.raises(ConnectionAbortedError):
                    await accepting
                with pytest.raises(RuntimeError, match="this peer has been closed"):
                    await peer.accept()

    loop.run(main())


def test_an_accept_waits_while_connects_are_refused_and_dropped(loop: Loop) -> None:
    async def main() -> None:
        async with AsyncScriptedPeer() as peer:
            accepts = asyncio.gather(peer.accept(), peer.accept())
            with peer.refusing(), pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*peer.address)
            pairs = [await asyncio.open_connection(*peer.address) for _ in range(2)]
            assert len(set(await accepts)) == 2
            peer.accept_and_drop(1)
            pairs.append(await asyncio.open_connection(*peer.address))
            assert await pairs[-1][0].read() == b""
            for _, writer in pairs:
                await close(writer)

    loop.run(main())


def test_a_read_that_is_cancelled_loses_nothing(loop: Loop) -> None:
    async def main() -> None:
        async with AsyncScriptedPeer() as peer:
            with socket.create_connection(peer.address) as client:
                end = await peer.accept()
                reading = asyncio.create_task(end.read(4))
                client.sendall(b"12")
                while end.received < 2:
                    await asyncio.sleep(0)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                client.sendall(b"34")
                assert await end.read(4) == b"1234"

    loop.run(main())


@pytest.mark.parametrize("how", ["fin", "rst", "close", "black_hole"])
def test_who_reads_at_an_end_that_is_closed_is_told_so(loop: Loop, how: str) -> None:
    async def main() -> None:
        async with AsyncScriptedPeer() as peer:
            with socket.create_connection(peer.address) as client:
                end = await peer.accept()
                reading = asyncio.create_task(end.read(4))
                await asyncio.sleep(0)
                getattr(end, how)()
                with pytest.raises(ConnectionAbortedError):
                    await reading
                client.settimeout(20)
                if how == "rst":
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                elif how != "black_hole":
                    assert client.recv(1) == b""

    loop.run(main())


def test_on_another_loop_than_asyncios_it_says_so(async_scripted_peer: AsyncScriptedPeer) -> None:
    with pytest.raises(RuntimeError, match="AsyncScriptedPeer is for asyncio"):
        trio.run(async_scripted_peer.accept)


def test_waiting_is_bounded(loop: Loop) -> None:
    async def main() -> None:
        async with AsyncScriptedPeer(timeout=0.2) as peer:
            with pytest.raises(TimeoutError, match=r"not within 0\.2 s: a connection"):
                await peer.accept()
            with socket.create_connection(peer.address):
                end = await peer.accept()
                with pytest.raises(TimeoutError, match="the client reads"):
                    await end.say(bytes(30_000_000))

    loop.run(main())


def test_several_tasks_may_wait_for_one_handshake(
    certificates: Certificates, context: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with AsyncScriptedPeer(tls=certificates.server(), timeout=5) as peer:
            with socket.create_connection(peer.address) as client:
                end = await peer.accept()
                # The client has not begun: all of them wait.
                reading = asyncio.create_task(end.read(2))
                saying = asyncio.gather(end.say(b"hello"), end.handshake())
                await asyncio.sleep(0)
                reader, writer = await asyncio.open_connection(
                    sock=client, ssl=context, server_hostname=NAME
                )
                await saying
                assert await reader.readexactly(5) == b"hello"
                writer.write(b"ok")
                assert await reading == b"ok"
                await end.close_notify()
                assert await reader.read() == b""
                await close(writer)

    asyncio.run(main())
    assert "safesock peer" not in [thread.name for thread in threading.enumerate()]
