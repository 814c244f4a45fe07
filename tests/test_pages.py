"""Every Python block of the README and of the pages in docs/ runs, in order, against a server that
answers once and closes; what it prints is what the block after it says. Commands are checked too.

A page that begins with `<!-- server: ... -->` needs another server, and has a test of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import random
import re
import shlex
import socket
import socketserver
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from suites import FAIL, alone

import safesock
from safesock import cli

pytest_plugins = "pytester"

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [README, *sorted((ROOT / "docs").rglob("*.md"))]
}
# What a command cannot do without.
EXAMPLES = {"audit": [], "connect": ["192.0.2.7:4001"], "demo": [], "run": ["--", "true"]}
OWN_SERVER = re.compile(r"\s*<!-- server: ")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES)


class Greeter(socketserver.BaseRequestHandler):
    """Answers once, in HTTP if it is asked so, and closes: without a word of that before."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            question = self.request.recv(4096)
            if question.startswith(b"GET "):
                self.request.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nhello yourself\n"
                )
            elif question:
                self.request.sendall(b"hello yourself\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True  # Where a page has failed, its connections stay open.


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    with Server(("127.0.0.1", 0), Greeter) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[:2]  # type: ignore[misc]
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def blocks(text: str) -> list[tuple[str, str, str | None]]:
    """Each one's language, its text, and that of the `text` block right after it, its output."""
    found = list(BLOCK.finditer(text))
    outputs = {
        one.end(): two[2]
        for one, two in itertools.pairwise(found)
        if two[1] == "text" and not text[one.end() : two.start()].strip()
    }
    return [(one[1], one[2], outputs.get(one.end())) for one in found]


def commands(text: str) -> list[list[str]]:
    """All that is said of `safesock`, in shells, in prose, and in what starts a program."""
    code = [
        block.replace("\\\n", "") for language, block, _ in blocks(text) if language != "python"
    ]
    found = re.findall(
        r"^\$? ?(?:[*/\d]+ .*? )?(?:.*&& )?(safesock [^|>&\n]*)", "\n".join(code), re.M
    )
    found += re.findall(r"`(safesock \w+ [^`]*)`", text.replace("\n", " "))
    words = [shlex.split(command, comments=True) for command in found]
    return words + [json.loads(one) for one in re.findall(r"command: (\[.*\])", "\n".join(code))]


def given(page: str, address: tuple[str, int]) -> dict[str, Any]:
    """The names that a page may use without saying where they are from."""
    names: dict[str, Any] = {"address": address, "local_port": free_port()}
    if "plain_socket" in PAGES[page]:  # It would be in CLOSE_WAIT where nobody takes it.
        names["plain_socket"] = socket.create_connection(address, 20)
        names["plain_socket"].sendall(b"hello\n")
    return names


def run_blocks(page: str, names: dict[str, Any], capsys: Any) -> str:
    """All of them, in one namespace; what they have printed."""
    printed = ""
    python = [block for block in blocks(PAGES[page]) if block[0] == "python"]
    for number, (_, block, expected) in enumerate(python):
        block = block.replace("attempts=8", "attempts=2")  # Or the waits take a minute.
        exec(compile(block, f"{page}, block {number + 1}", "exec"), names)
        if "enforcement" in names:  # It is for a whole process, which this is not.
            names.pop("enforcement").remove()
        output = capsys.readouterr().out
        if expected is not None:
            pattern = re.escape(expected).replace(r"\.\.\.", r"[^\n]*")
            assert re.fullmatch(pattern, output), f"block {number + 1} has printed:\n{output}"
        printed += output
    return printed


@pytest.mark.parametrize("page", [name for name in PAGES if not OWN_SERVER.match(PAGES[name])])
def test_every_line_is_true(
    page: str, address: tuple[str, int], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Waits are random, from 0 seconds up.
    monkeypatch.setattr(random, "uniform", lambda least, _most: least)
    names = given(page, address)
    printed = run_blocks(page, names, capsys)
    for name in ("sock", "client"):
        if hasattr(names.get(name), "close"):
            names[name].close()
    if "plain_socket" in names:
        assert names["plain_socket"].fileno() == -1
    if page == "docs/events.md":
        assert printed.count("was lost by FIN") == 1
        assert printed.count("# TYPE safesock_connections_total counter") == 1
    if page == "README.md":
        assert printed.count("hello yourself") == 7
        assert printed.count("Loss(cause=<Cause.FIN: 'fin'>") == 5
        assert printed.count("after 2 attempts: the limit is 2") == 2
        assert printed.count(": connected from ") == 1
        client = names["Connection"](*address, timeout=20)
        client.connect()
        assert isinstance(client.sock, safesock.SafeSocket)
        client.close()


def test_no_page_is_without_a_test() -> None:
    """Those with a server of their own are recipes, and nothing else is."""
    assert {"docs/close-wait.md", "docs/recipes/any-client.md"} <= set(PAGES)
    for page, text in PAGES.items():
        if OWN_SERVER.match(text):
            assert page.startswith("docs/recipes/")


@each_page
def test_every_command_is_one(page: str) -> None:
    for _, *arguments in commands(PAGES[page]):
        if arguments[-1:] == ["--help"]:
            arguments = [arguments[0], *EXAMPLES[arguments[0]]]
        cli._parser().parse_args(arguments)  # Or it raises SystemExit.


def audits() -> list[tuple[str, ...]]:
    found = [words for text in PAGES.values() for words in commands(text) if "--pid" in words]
    return sorted({tuple(words[1:]) for words in found})


@pytest.mark.parametrize("arguments", audits(), ids=" ".join)
def test_an_audit_of_a_process_is_what_it_says(arguments: tuple[str, ...], capsys: Any) -> None:
    pid = arguments[arguments.index("--pid") + 1]
    assert cli.main([str(os.getpid()) if word == pid else word for word in arguments]) == 0
    assert not capsys.readouterr().err


def test_the_commands_to_install_and_to_run_are_there() -> None:
    readme = PAGES["README.md"]
    assert "pip install -e . && safesock demo" in readme
    assert "pip install -e '.[test]' && pytest" in readme
    assert "pip install -e '.[docs]' && python -m docs" in readme
    assert "pip install -e '.[release]' && python -m release" in PAGES["docs/releasing.md"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for text in PAGES.values():
        for names in re.findall(r"pip install -e '\.\[([\w,]+)\]'", text):
            assert set(names.split(",")) <= set(extras)
        for module in re.findall(r"python -m ((?:benchmarks|chaos|docs|release)[\w.]*)", text):
            assert importlib.util.find_spec(module), module
        for file in re.findall(r"[ `]((?:tests|examples)/\w+\.py)", text):
            assert (ROOT / file).exists(), file


def slug(heading: str) -> str:
    """As GitHub and the site name it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@each_page
def test_every_link_leads_somewhere(page: str) -> None:
    prose = BLOCK.sub("", PAGES[page])
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose):
        name, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_close_modes_are_named_as_they_are() -> None:
    for mode in ("Graceful()", "Drain(timeout=5.0)", "Linger(seconds=2)", "Abort()"):
        assert f"`{mode}`" in PAGES["README.md"]
        assert eval(f"safesock.{mode}") == type(eval(f"safesock.{mode}"))()


def test_a_test_that_leaves_a_connection_fails_as_it_says(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(PAGES["docs/testing.md"])
    (code,) = (block for language, block, _ in found if language == "python" and "POOL" in block)
    (said,) = (block for language, block, _ in found if language == "text")
    pytester.makepyfile(test_client=code)
    result = alone(pytester, monkeypatch)("", *FAIL)
    result.assert_outcomes(passed=1, errors=1)
    numbers = r"(?<=fd )\d+|(?<=127\.0\.0\.1:)\d+"
    printed = re.sub(numbers, "N", result.stdout.str())
    assert re.sub(numbers, "N", said) in printed
