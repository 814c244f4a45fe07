"""`safesock run` in front of servers that start workers: these are under it too."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from subprocess import DEVNULL

import pytest
from command import PROGRAM, running
from kernel import wait_until
from peer import EOF, Peer

pytestmark = pytest.mark.campaign

WORKERS = 2
# Each worker imports it for itself.
APP = """\
import os, socket

idle = socket.create_connection((os.environ["PEER_HOST"], int(os.environ["PEER_PORT"])))

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
"""
SERVERS = {
    "gunicorn": [
        "--chdir",
        "{folder}",
        "-b",
        "unix:{folder}/socket",
        "-w",
        str(WORKERS),
        "app:wsgi",
    ],
    "uvicorn": [
        "--app-dir",
        "{folder}",
        "--uds",
        "{folder}/socket",
        "--workers",
        str(WORKERS),
        "--timeout-worker-healthcheck",
        "60",
        "app:asgi",
    ],
}
# It imports the server, the app and safesock, on a machine that may have much else to do.
STARTS = 60.0


def console_script(name: str) -> str:
    found = shutil.which(name, path=os.path.dirname(sys.executable))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.settimeout(STARTS)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return sock.recv(100).split()[1:2] == [b"200"]
    return False


def status(peer: Peer, folder: Path, name: str, *run: str) -> int:
    """Of a server whose workers' connections have been closed by their peer; under *run* they come
    to their end, without a hand of the workers."""
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    log = folder / "log"
    words = [word.format(folder=folder) for word in SERVERS[name]]
    command = [*run, console_script(name), *words]
    peer.listener.settimeout(STARTS)
    host, port = peer.address
    environment = {"PEER_HOST": host, "PEER_PORT": str(port), "HOME": str(folder)}
    with (
        log.open("wb") as output,
        running(command, output.fileno(), output.fileno(), DEVNULL, **environment) as one,
    ):
        for end in [peer.accept() for _ in range(WORKERS)]:
            end.half_close()
            assert not run or end.read_to_end() == (b"", EOF)
        wait_until(lambda: answers(folder / "socket"), f"{name} answers", STARTS)
        one.process.send_signal(signal.SIGTERM)
        ended = one.end().status
    assert "Traceback" not in log.read_text()
    return ended


@pytest.mark.parametrize("name", SERVERS)
def test_the_workers_of_a_server_are_covered_and_it_ends_as_before(
    peer: Peer, tmp_path: Path, name: str
) -> None:
    run = [*PROGRAM, "run", "--grace", "0.05", "--"]
    assert status(peer, tmp_path / "enforced", name, *run) == status(peer, tmp_path / "plain", name)
