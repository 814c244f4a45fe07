"""`safesock run`: an unmodified program, and all the Pythons that it starts."""

from __future__ import annotations

import os
import re
import signal
import sys
import timeit
from pathlib import Path

import pytest
from command import PIPE, PROGRAM, in_pipe, running
from peer import EOF, Peer

from safesock._excepted import all_but

RUN = [*PROGRAM, "run", "--grace", "0.05"]

APP = """\
import _socket, multiprocessing, os, socket, subprocess, sys

def client(kind, *address):
    idle = kind()
    idle.connect(address)
    with socket.create_connection(address) as control:
        control.recv(1)
        print(idle.recv(9), idle.recv(9), idle.fileno() >= 0, flush=True)
    idle.close()

if __name__ == "__main__":
    way, host, port = sys.argv[1:]
    kind = _socket.socket if way == "in C" else socket.socket
    if way in ("spawn", "fork", "forkserver"):
        context = multiprocessing.get_context(way)
        child = context.Process(target=client, args=(kind, host, int(port)))
        child.start()
        child.join()
    elif way == "os.fork" and os.fork():
        os.wait()
    elif way == "subprocess":
        subprocess.run([sys.executable, __file__, "script", host, port], check=True)
    else:
        client(kind, host, int(port))
"""
WAYS = [
    "script",
    "module",
    "console script",
    "subprocess",
    "os.fork",
    "fork",
    "spawn",
    "forkserver",
]


def ended_well(peer: Peer, command: list[str]) -> None:
    with running(command) as one:
        idle, control = peer.accept(), peer.accept()
        idle.say(b"bye")
        idle.half_close()
        # Its owner does nothing meanwhile.
        assert idle.read_to_end() == (b"", EOF)
        control.say(b"!")
        ended = one.end()
    assert ended.errors == ""
    assert ended.output == "b'bye' b'' True\n"
    assert ended.status == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_client_is_covered(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    app = tmp_path / "app.py"
    app.write_text(f"#!{sys.executable}\n{APP}")
    app.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    start = {"module": ["-m", "app"], "console script": ["--", str(app)]}
    command = start.get(way, ["--", sys.executable, str(app)])
    ended_well(peer, [*RUN, *command, way, peer.address[0], str(peer.address[1])])


def test_a_library_in_c_is_covered_by_the_sweep(peer: Peer, tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    program = [sys.executable, str(app), "in C", peer.address[0], str(peer.address[1])]
    ended_well(peer, [*RUN, "--sweep", "0.1", "--", *program])


def python(text: str, *arguments: str) -> list[str]:
    return [*RUN, "--", sys.executable, "-c", text, *arguments]


TRACES = """
import sys
print(sys.argv, [one for one in [*sys.path, *sys.path_importer_cache] if "bootstrap" in one])
try:
    import sitecustomize
except ImportError as error:
    print(repr(error))
"""


def test_the_program_sees_no_trace_of_it() -> None:
    ended = in_pipe(python(TRACES, "--close", "x"))
    none = """ModuleNotFoundError("No module named 'sitecustomize'")"""
    assert ended == (0, f"['-c', '--close', 'x'] []\n{none}\n", "")


def other_python(version: str) -> str:
    """One of pyenv's."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not found:
        pytest.skip(f"pyenv has no Python {version}")
    return str(found[0])


other_versions = pytest.mark.parametrize("version", ["2.7", "3.6", "3.10"])


@other_versions
def test_an_older_python_runs_the_program_as_it_is(version: str) -> None:
    program = ["-B", "-c", "import socket, sys; print('safesock' in sys.modules)"]
    ended = in_pipe([*RUN, "--report", "--", other_python(version), *program])
    assert ended == (0, "False\n", "")


@other_versions
def test_an_older_python_imports_the_programs_own_sitecustomize(
    version: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("its_own = True")
    program = ["-B", "-c", "import sys; print(sys.modules['sitecustomize'].its_own)"]
    with running([*RUN, "--", other_python(version), *program], PYTHONPATH=str(tmp_path)) as one:
        assert one.end() == (0, "True\n", "")


OWN_MODULES = ("json", "copy", "heapq", "queue", "select", "signal")
# Where the current folder is not for safesock's own process.
ELSEWHERE = [sys.executable, "-P", *PROGRAM[1:], "run", "--"]
OWN_APP = """\
import importlib, socket
for name in {names}:
    print(name, hasattr(importlib.import_module(name), "its_own"))
print(socket.socket.connect.__class__.__name__)
"""
PLACES = {
    "beside the script": ["{folder}/app.py"],
    "beside a link to the script": ["{folder}/elsewhere/link"],
    "in the folder that is the script": ["{folder}"],
    "in the current folder": ["-m", "app"],
    "in the current folder, of a command": ["-c", "import app"],
}


def with_own_modules(folder: Path) -> None:
    """A program with modules of its own, each named as one of the standard library's."""
    for name in OWN_MODULES[1:]:
        (folder / f"{name}.py").write_text("its_own = True")
    (folder / OWN_MODULES[0]).mkdir()
    (folder / OWN_MODULES[0] / "__init__.py").write_text("its_own = True")
    for name in ("app", "__main__"):
        (folder / f"{name}.py").write_text(OWN_APP.format(names=OWN_MODULES))
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "link").symlink_to("../app.py")


OWN_ARE_IMPORTED = [*(f"{name} True" for name in OWN_MODULES), "function"]


@pytest.mark.parametrize("place", PLACES)
def test_modules_of_its_own_come_before_the_standard_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with_own_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    start = [text.format(folder=tmp_path) for text in PLACES[place]]
    ended = in_pipe([*ELSEWHERE, sys.executable, *start])
    assert (ended.lines, ended.errors) == (OWN_ARE_IMPORTED, "")


def test_modules_of_its_own_in_pythonpath_do_not_get_into_safesock(tmp_path: Path) -> None:
    with_own_modules(tmp_path)
    command = f"PYTHONPATH=$PYTHONPATH:{tmp_path} exec {sys.executable} -c 'import app'"
    ended = in_pipe([*RUN, "--", "sh", "-c", command])
    assert (ended.lines, ended.errors) == (OWN_ARE_IMPORTED, "")


def test_where_the_scripts_folder_is_not_looked_into_nothing_there_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_own_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = in_pipe([*ELSEWHERE, sys.executable, "-P", str(tmp_path / "app.py")])
    wanted = [*(f"{name} False" for name in OWN_MODULES), "function"]
    assert (ended.lines, ended.errors) == (wanted, "")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
    ids=["exit", "signal"],
)
def test_its_status_is_the_programs_own(text: str, status: int) -> None:
    assert in_pipe(python(text)).status == status


def test_a_signal_that_python_ignores_is_not_ignored_in_the_program() -> None:
    assert in_pipe([*RUN, "--", "sh", "-c", "kill -PIPE $$"]).status == -signal.SIGPIPE


def test_its_input_is_the_programs_own() -> None:
    with running(python("print(input())"), stdin=PIPE) as one:
        one.say(b"a line\n")
        assert one.end().output == "a line\n"


WHOSE = "import socket; print(socket.socket.connect.__class__.__name__)"


@pytest.mark.parametrize(
    ("off", "kind"), [("1", "method_descriptor"), ("0", "function"), ("", "function")]
)
def test_an_environment_variable_turns_it_off(off: str, kind: str) -> None:
    with running(python(WHOSE), SAFESOCK_OFF=off) as one:
        assert one.end().output == f"{kind}\n"


def test_a_sitecustomize_of_its_own_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.its_own = __file__")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with running(python(f"import sys; print(sys.its_own); {WHOSE}"), PYTHONPATH=path) as one:
        assert one.end().lines == [str(tmp_path / "sitecustomize.py"), "function"]


def test_a_script_of_the_standard_library_gets_no_second_socket_module() -> None:
    script = [timeit.__file__, "-n", "1", "-r", "1", "-s", WHOSE]
    assert in_pipe([*RUN, "--", sys.executable, *script]).lines[0] == "function"


CONNECTS = """\
import multiprocessing, os, socket, sys

def connect():
    socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
"""


def reports(peer: Peer, text: str, *options: str) -> list[str]:
    """What the processes of this program tell at their ends, one after the other."""
    program = [sys.executable, "-c", CONNECTS + text, peer.address[0], str(peer.address[1])]
    ended = in_pipe([*RUN, "--report", *options, "--", *program])
    assert ended.status == 0
    lines = [one for one in ended.errors.splitlines() if one.startswith("safesock: process ")]
    return [one.split(": ", 2)[2] for one in lines]


NONE = "0 connections seen, 0 released, 0 aborted, 0 in CLOSE_WAIT all the same"
ONE = "1 connection seen, 0 released, 0 aborted, 0 in CLOSE_WAIT all the same"


@pytest.mark.parametrize(
    ("text", "told"), [("connect()", ONE), ("connect(); connect()", f"2 connections{ONE[12:]}")]
)
def test_it_reports(peer: Peer, text: str, told: str) -> None:
    assert reports(peer, text) == [told]


def test_it_reports_that_there_was_nothing(peer: Peer) -> None:
    assert reports(peer, "") == [NONE]


IN_C = """\
import _socket, sys
both = _socket.socket(), _socket.socket()
for one in both:
    one.connect((sys.argv[1], int(sys.argv[2])))
input()
"""


def test_it_reports_what_only_the_sweep_has_found(peer: Peer) -> None:
    program = [sys.executable, "-c", IN_C, peer.address[0], str(peer.address[1])]
    with running([*RUN, "--sweep", "0.1", "--report", "--", *program], stdin=PIPE) as one:
        ends = [peer.accept(), peer.accept()]
        for end in ends:
            end.half_close()
        for end in ends:
            assert end.read_to_end() == (b"", EOF)
        one.say(b"enough\n")
        # One is counted before the other is ended.
        assert re.search(": 0 connections seen, [12] released, 0 aborted, ", one.end().errors)


def test_a_forked_child_reports_what_it_has_done_itself(peer: Peer) -> None:
    text = "connect(); child = os.fork(); child and os.waitpid(child, 0); child or connect()"
    assert reports(peer, text) == [ONE, ONE]
    assert reports(peer, text.removesuffix("; child or connect()")) == [NONE, ONE]


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_reports(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (tmp_path / "connects.py").write_text(CONNECTS)
    monkeypatch.chdir(tmp_path)
    text = f"""
import connects
child = multiprocessing.get_context("{way}").Process(target=connects.connect)
child.start()
child.join()
"""
    told = reports(peer, text)
    assert told.count(ONE) == 1
    assert set(told) == {ONE, NONE}


@pytest.mark.parametrize(
    ("texts", "peer_address", "is_covered"),
    [
        (["192.0.2.7"], ("192.0.2.7", 80), False),
        (["192.0.2.7"], ("192.0.2.8", 80), True),
        (["192.0.2.7:80"], ("192.0.2.7", 80), False),
        (["192.0.2.7:80"], ("192.0.2.7", 81), True),
        ([":80"], ("192.0.2.7", 80), False),
        ([":80"], ("::1", 80, 0, 0), False),
        ([":80"], ("::1", 81, 0, 0), True),
        (["192.0.2.0/24:80"], ("192.0.2.7", 80), False),
        (["192.0.2.1/24"], ("192.0.2.7", 80), False),
        (["192.0.2.0/24"], ("192.0.3.7", 80), True),
        (["192.0.2.0/24"], ("::ffff:192.0.2.7", 80, 0, 0), False),
        (["0.0.0.0/0"], ("::1", 80, 0, 0), True),
        (["[::1]"], ("::1", 80, 0, 0), False),
        (["[::1]:80"], ("::1", 80, 0, 0), False),
        (["[::1]:80"], ("::1", 81, 0, 0), True),
        (["[fe80::/10]"], ("fe80::7%eth0", 80, 0, 2), False),
        (["192.0.2.7", ":80"], ("192.0.2.8", 80), False),
        (["192.0.2.7", ":80"], ("192.0.2.7", 81), False),
        (["192.0.2.7"], None, True),
    ],
)
def test_peers_are_excepted_by_address(
    texts: list[str], peer_address: tuple[str, int] | None, is_covered: bool
) -> None:
    assert all_but(texts)(peer_address) is is_covered


def test_a_connection_to_an_excepted_peer_is_left_alone(peer: Peer) -> None:
    host, port = peer.address
    assert reports(peer, "connect()", "--except", "192.0.2.7", "--except", f"{host}:{port}") == [
        NONE
    ]
    assert reports(peer, "connect()", "--except", f"192.0.2.7:{port}") == [ONE]


def test_its_help_tells_what_it_does_not_do() -> None:
    status, output, errors = in_pipe([*PROGRAM, "run", "--help"])
    assert (status, errors) == (0, "")
    words = ("-m MODULE ...", "SAFESOCK_OFF", "Python 3.11", "os._exit", "event loop", "--except")
    assert [word for word in words if word not in output] == []
    assert max(map(len, output.splitlines())) <= 88


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "no program to run"),
        (["--frobnicate", "--", "true"], 2, "--frobnicate (see safesock run --help)"),
        (["--close", "softly", "--", "true"], 2, "--close takes"),
        (["--close", "drain=-1", "--", "true"], 2, "error: --close: Drain(timeout) takes"),
        (["--sweep", "0", "--", "true"], 2, "--sweep"),
        (["--grace", "often", "--", "true"], 2, "--grace takes a number"),
        (["--grace", "-1", "--", "true"], 2, "--grace takes seconds from 0 to 2147484: not -1"),
        (["--grace", "1;close=abort", "--", "true"], 2, "--grace takes a number"),
        (["--except", "localhost", "--", "true"], 2, "and no name: not 'localhost'"),
        (["--except", "localhost:80", "--", "true"], 2, "and no name: not 'localhost'"),
        (["--except", "fe80::7%eth0", "--", "true"], 2, "IPv6 as [::1]:80: not 'fe80::7%eth0'"),
        (["--except", "[fe80::7%eth0]", "--", "true"], 2, "and no name: not 'fe80::7%eth0'"),
        (["--except", "[192.0.2.7]", "--", "true"], 2, "IPv6 as [::1]:80: not '[192.0.2.7]'"),
        (["--except", "::1", "--", "true"], 2, "IPv6 as [::1]:80: not '::1'"),
        (["--except", "", "--", "true"], 2, "--except takes HOST, HOST:PORT or :PORT"),
        (["--except", "192.0.2.7:", "--", "true"], 2, "--except takes HOST, HOST:PORT or :PORT"),
        (["--except", ":65536", "--", "true"], 2, "--except takes HOST, HOST:PORT or :PORT"),
        (["--except", "[::1]80", "--", "true"], 2, "--except takes HOST, HOST:PORT or :PORT"),
        (["--", "no-such-program"], 127, "there is no program 'no-such-program'\n"),
        (["no-such.py"], 127, "'no-such.py' (is it safesock run -- python no-such.py?)"),
        (["--", "/"], 126, "cannot run '/'"),
        (
            [__file__],
            126,
            f"Permission denied: {__file__!r} (is it safesock run -- python {__file__}?)",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_what_cannot_be_run_is_told_in_a_line(arguments: list[str], status: int, text: str) -> None:
    ended = in_pipe([*PROGRAM, "run", *arguments])
    assert ended.status == status
    assert text in ended.errors
    assert ended.errors.count("\n") == 1
