"""The layers of the package: who may import whom, and what stays in one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import safesock
import safesock.testing

PACKAGE = Path(safesock.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 450

# Each imports from those before it only. `__init__` collects what is public.
LAYERS = [
    "_value",
    "_errors",
    "_policy",
    "_loss",
    "_life",
    "_logger",
    "events",
    "_kernel",
    "_kernel_diag",
    "_abortive",
    "_options",
    "_proc",
    "_background",
    "_extras",
    "_forks",
    "_beside",
    "_unraisable",
    "_hub",
    "_resolve",
    "_destination",
    "_story",
    "_told",
    "_closing",
    "_turn",
    "_connection",
    "_budget",
    "_reconnect",
    "_holders",
    "_watch",
    "_governed",
    "_transfer",
    "_socket",
    "_tls_transfer",
    "_tls",
    "_open",
    "_attempt",
    "_dial",
    "_reconnecting",
    "_reconnecting_tls",
    "_connector",
    "_kept",
    "_trio",
    "_released_tls",
    "_released",
    "_plain",
    "_ward",
    "_replaced",
    "_spare",
    "_sweep",
    "_enforce",
    "_audit_records",
    "_audit",
    "_subscribe",
    "__init__",
    "_measures",
    "prometheus",
    "otel",
    "asyncio._base",
    "asyncio._wake",
    "asyncio._connect",
    "asyncio._writing",
    "asyncio._transport",
    "asyncio._tls",
    "asyncio._create",
    "asyncio._streams",
    "asyncio._takeover",
    "asyncio._dial",
    "asyncio._connector",
    "asyncio.__init__",
    "adapters._policies",
    "adapters._sockets",
    "adapters.asyncio",
    "adapters.urllib3",
    "adapters.requests",
    "adapters.anyio",
    "adapters.httpcore",
    "adapters.httpx",
    "adapters.redis.__init__",
    "adapters.redis.asyncio",
    "adapters.pymysql",
    "adapters.__init__",
    "_demo_kernel",
    "_demo_server",
    "_demo_screen",
    "_demo",
    "_netcat_tls",
    "_netcat_link",
    "_netcat_news",
    "_option_values",
    "_netcat_options",
    "_signals",
    "_netcat",
    "_audit_words",
    "_audit_screen",
    "_audit_command",
    "_excepted",
    "_run_report",
    "_shadowed",
    "_run",
    "_bootstrap.sitecustomize",
    "cli",
    "__main__",
    "testing._wait",
    "testing._acts",
    "testing._tls_acts",
    "testing._listener",
    "testing._refusals",
    "testing._base",
    "testing._client",
    "testing._peer",
    "testing._async_peer",
    "testing._leak_warning",
    "testing.__init__",
    "_leaks_made",
    "_leaks_held",
    "_leaks",
    "_leaks_words",
    "_pytest_leaks",
    "_pytest_plugin",
]
# The two drivers know nothing of each other.
SYNCHRONOUS = {"_dial", "_reconnecting", "_reconnecting_tls", "_connector", "_enforce", "__init__"}
# What only these know: ioctl(2) requests, the layout of structures; and options.
KERNEL = {"_kernel", "_kernel_diag", "_abortive"}
OPTION = re.compile(r"(SO_|TCP_|SIOC|FION|TIOC)[A-Z_]+")
KERNEL_MODULES = {"ctypes", "fcntl", "struct", "termios"}


def layer(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


each_file = pytest.mark.parametrize("file", FILES, ids=layer)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(tree: ast.AST) -> set[str]:
    """The names of all modules, or of what is in them, that are imported anywhere in a file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layers_imported(tree: ast.AST) -> set[str]:
    """The files of the package that are imported."""
    found = set()
    for name in imported(tree):
        first, *rest = name.split(".")
        if first == "safesock":
            known = (".".join(rest[:end]) for end in (3, 2, 1))
            found.add(next((one for one in known if one in LAYERS), "__init__"))
    return found


def words(tree: ast.AST) -> set[str]:
    """The names that a file uses, also as strings, as getattr takes them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@each_file
def test_imports_point_to_earlier_layers_only(file: Path) -> None:
    assert layer(file) in LAYERS, "a new file: give it a place in LAYERS"
    allowed = set(LAYERS[: LAYERS.index(layer(file))])
    if layer(file).startswith("asyncio."):
        allowed -= SYNCHRONOUS
    if layer(file).startswith("testing."):  # It judges the rest, and so it shares none of it.
        allowed = {one for one in allowed if one.startswith("testing.")} | {"_kernel", "_abortive"}
    assert layers_imported(parse(file)) <= allowed


def test_every_layer_is_there() -> None:
    assert {layer(file) for file in FILES} == set(LAYERS)


@each_file
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < MOST_LINES


@each_file
def test_only_kernel_names_socket_options_and_requests(file: Path) -> None:
    tree = parse(file)
    options = {word for word in words(tree) if OPTION.fullmatch(word)}
    modules = {name.partition(".")[0] for name in imported(tree)} & KERNEL_MODULES
    if file.stem == "_kernel":
        assert {"SO_LINGER", "TCP_INFO", "FIONREAD", "TIOCOUTQ"} <= options
        assert modules == KERNEL_MODULES - {"ctypes"}
    else:
        assert not options or file.stem in ("_abortive", "_options")
        assert modules == ({"ctypes", "struct"} if file.stem in KERNEL else set())


HEAVY = {"asyncio", "tenacity", "ssl", "ctypes", "rich", "psutil", "logging", "dataclasses"}
IMPORT = """
import os, sys, threading
before, descriptors = set(sys.modules), os.listdir("/proc/self/fd")
import safesock
print(*sorted(set(sys.modules) - before))
assert threading.active_count() == 1, threading.enumerate()
assert os.listdir("/proc/self/fd") == descriptors
"""


def test_import_loads_nothing_heavy_and_starts_nothing() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "safesock._socket" in loaded
    assert not {name.partition(".")[0] for name in loaded} & HEAVY


@pytest.mark.parametrize("name", safesock.testing.__all__)
def test_everything_for_tests_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(safesock.testing, name).__doc__
    assert name in dir(safesock.testing)


@pytest.mark.parametrize("name", safesock.__all__)
def test_everything_public_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(safesock, name).__doc__
    assert name in dir(safesock)
