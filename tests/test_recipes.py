"""Every Python block of docs/recipes runs, by itself, against the server that its page names."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapted import ADAPTED
from clients.uses import HOST
from servers.base import Server, Servers
from servers.brokers import MosquittoWebSocket
from servers.databases import MariaDb, Memcached, Postgres, Redis
from servers.sessions import OpenSsh
from servers.web import Nginx

# Those that need no server of their own run with the other pages.
RECIPES = [
    page
    for page in sorted((Path(__file__).parent.parent / "docs" / "recipes").glob("*.md"))
    if page.read_text().startswith("<!-- ")
]
SERVERS: dict[str, type[Server]] = {
    "mariadb": MariaDb,
    "memcached": Memcached,
    "mosquitto": MosquittoWebSocket,
    "nginx": Nginx,
    "openssh": OpenSsh,
    "postgresql": Postgres,
    "redis": Redis,
}
HEAD = re.compile(r"<!-- server: (\w+) -->\n# (\S+)\n")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> Iterator[Any]:
    for page in RECIPES:
        for number, block in enumerate(BLOCK.findall(page.read_text()), 1):
            yield pytest.param(page, block, id=f"{page.stem} {number}")


def test_every_client_has_a_page_with_code() -> None:
    titles = set()
    for page in RECIPES:
        head = HEAD.match(page.read_text())
        assert head, f"{page.name} begins with its server and its title"
        assert head[1] in SERVERS
        assert BLOCK.search(page.read_text()), f"{page.name} has code"
        titles.add(head[2])
    assert titles == {name.partition(",")[0] for name in ADAPTED}


@pytest.mark.campaign
@pytest.mark.parametrize(("page", "block"), list(blocks()))
def test_a_recipe_works(servers: Servers, page: Path, block: str, capsys: Any) -> None:
    if importlib.util.find_spec(page.stem) is None:
        pytest.skip(f"{page.stem} is not installed")
    head = HEAD.match(page.read_text())
    assert head
    server = servers.get(SERVERS[head[1]])
    names: dict[str, Any] = {"host": HOST, "port": server.port, "ca": str(server.authority)}
    names["key"] = f"{server.folder}/client"
    timeouts: list[float | None] = []

    def show(*values: object) -> None:
        if "sock" in names:
            timeouts.append(names["sock"].gettimeout())
        print(*values)

    names["print"] = show
    with warnings.catch_warnings():
        if page.stem == "paramiko":  # That the host's key is not known.
            warnings.simplefilter("ignore")
        exec(compile(block, f"{page.name}", "exec"), names)
    if page.stem == "websockets" and "sock" in names:
        # It reads all the time, and some versions take the silence for an error.
        assert timeouts[0] is None
    printed = capsys.readouterr().out
    assert printed.strip()
    assert "None" not in printed.replace("error=None", "")
