"""How to test a client of one's own: line_client.py, and a server that misbehaves when told to.

pip install safesock pytest && pytest test_line_client.py
"""

import asyncio

import pytest
from line_client import follow

from safesock import Reconnect, ReconnectError
from safesock.asyncio import Connector
from safesock.testing import AsyncScriptedPeer, End, PeerEnd, ScriptedPeer

AT_ONCE = Reconnect(attempts=3, wait=lambda _: 0)


def run(address: tuple[str, int]) -> None:
    asyncio.run(follow(Connector(address, reconnect=AT_ONCE), "hello"))


def test_it_comes_back(scripted_peer: ScriptedPeer, capsys: pytest.CaptureFixture[str]) -> None:
    client = scripted_peer.run_client(run, scripted_peer.address)  # It blocks: in a thread.
    for act in (PeerEnd.fin, PeerEnd.rst, PeerEnd.fin):
        end = scripted_peer.accept()
        end.say(b"a line\n")
        assert end.read_until(b"\n") == b"hello\n"
        act(end)
    with scripted_peer.refusing(), pytest.raises(ReconnectError, match="3 attempts"):
        client.result()
    # A reset may overtake what was said before it.
    assert capsys.readouterr().out.count("a line\n") >= 2


def test_it_waits_for_a_server_that_starts_late(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.refuse_next(2)
    client = scripted_peer.run_client(run, scripted_peer.address)
    assert scripted_peer.accept().read_until(b"\n") == b"hello\n"
    scripted_peer.close()
    with pytest.raises(ReconnectError):
        client.result()


def test_it_gives_up_on_a_server_that_drops_it(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.accept_and_drop(3)
    with pytest.raises(ReconnectError):
        run(scripted_peer.address)
    assert scripted_peer.dropped == 3


def test_it_ends_its_connection_when_cancelled(async_scripted_peer: AsyncScriptedPeer) -> None:
    async def main() -> None:
        client = asyncio.create_task(follow(Connector(async_scripted_peer.address), "hello"))
        end = await async_scripted_peer.accept()
        assert await end.read_until(b"\n") == b"hello\n"
        client.cancel()
        assert await end.read_to_end() == (b"", End.FIN)

    asyncio.run(main())
