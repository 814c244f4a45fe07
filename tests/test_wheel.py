"""As a new user starts: the built wheel, in a clean environment."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kernel import wait_until
from peer import EOF, Peer
from wheel import OF_DEVELOPERS, ROOT, Environment, Wheel, files_of_the_checkout, once

import safesock
import safesock.asyncio
import safesock.testing
from safesock import cli

pytestmark = [pytest.mark.campaign, pytest.mark.once]

# Says so when it is connected, and is idle until its input ends.
CLIENT = """
import socket, sys
with socket.create_connection(sys.argv[1:3]) as idle:
    print("connected", flush=True)
    sys.stdin.read()
    print(idle.recv(9))
"""


class Built(NamedTuple):
    """What `python -m build` makes of the checkout: the wheel is built from the sdist."""

    sdist: Path
    wheel: Wheel


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all the processes of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def built(shared: Path) -> Built:
    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
        subprocess.run(command, check=True, cwd=shared, capture_output=True)

    folder = once(shared, "dist", build)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, Wheel(wheel))


@pytest.fixture(scope="session")
def wheel(built: Built) -> Wheel:
    return built.wheel


@pytest.fixture(scope="session")
def bare(shared: Path, wheel: Wheel) -> Environment:
    """The wheel, and what it cannot do without."""
    return Environment(once(shared, "bare", lambda it: Environment(it).make(wheel.with_extras())))


@pytest.fixture(scope="session")
def full(shared: Path, wheel: Wheel) -> Environment:
    """The wheel with all the extras that are for users."""
    requirement = wheel.with_extras(*wheel.extras - OF_DEVELOPERS)
    return Environment(once(shared, "full", lambda it: Environment(it).make(requirement)))


@pytest.fixture(params=["bare", "full"])
def environment(request: pytest.FixtureRequest) -> Environment:
    """Once without extras, once with them."""
    found: Environment = request.getfixturevalue(request.param)
    return found


# What is in it ----------------------------------------------------------------------------------


def test_the_wheel_has_the_package_and_nothing_else(wheel: Wheel) -> None:
    package = {name.removeprefix("src/") for name in files_of_the_checkout("src")}
    information = {name for name in wheel.files if name.startswith("safesock-")}
    assert set(wheel.files) - information == package
    assert {Path(name).suffix for name in package} == {".py", ".typed"}
    assert {"safesock/py.typed", "safesock/_bootstrap/sitecustomize.py"} <= package
    assert {name.partition("/")[2] for name in information} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_metadata_is_what_the_project_is(wheel: Wheel) -> None:
    metadata = wheel.metadata
    assert (metadata["Name"], metadata["Version"]) == ("safesock", safesock.__version__)
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert wheel.information("licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    assert not [one for one in classifiers if one.startswith("License")]  # The expression says it.
    required = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert sorted(required) == ["tenacity>=9", "typing-extensions>=4.12"]
    assert "Root-Is-Purelib: true\nTag: py3-none-any\n" in wheel.information("WHEEL")


def test_this_python_is_one_that_the_metadata_names(wheel: Wheel) -> None:
    version = "{}.{}".format(*sys.version_info)
    classifier = f"Programming Language :: Python :: {version}"
    assert classifier in wheel.metadata.get_all("Classifier", [])


def test_the_readme_is_the_description_and_can_be_rendered(wheel: Wheel) -> None:
    from readme_renderer import markdown  # Of the extra `release`, which collecting takes not.

    metadata = wheel.metadata
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    rendered = markdown.render(str(metadata.get_payload()))
    assert rendered is not None
    assert "<h1" in rendered
    assert "<table>" in rendered


def test_the_sdist_has_all_that_the_tests_take(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    theirs = files_of_the_checkout(
        "src", "tests", "benchmarks", "chaos", "docs", "examples", "release"
    )
    files = {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml"}
    assert there == theirs | files | {".gitignore", "PKG-INFO"}
    quick = [f"tests/test_{name}.py" for name in ("examples", "layers", "pages", "release")]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *quick],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_checkout_gives_the_wheel_that_the_sdist_gives(built: Built, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("*.whl")
    assert Wheel(path).files == built.wheel.files


# What it takes ----------------------------------------------------------------------------------


def test_what_is_installed_fits_together(environment: Environment) -> None:
    assert "No broken requirements found." in environment.run("pip", "check")


# Python -----------------------------------------------------------------------------------------

IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.prefix), module.__file__
    for public in getattr(module, "__all__", ()):
        getattr(module, public)
    assert module.__doc__, name
"""


def test_every_public_module_can_be_imported(full: Environment, wheel: Wheel) -> None:
    modules = wheel.modules
    assert {"safesock", "safesock.asyncio", "safesock.cli", "safesock.testing"} <= modules
    assert full.run("python", "-W", "error", "-c", IMPORT, *sorted(modules)) == ""


def test_without_extras_too(bare: Environment) -> None:
    modules = ["safesock", "safesock.asyncio", "safesock.cli", "safesock.testing"]
    assert bare.run("python", "-W", "error", "-c", IMPORT, *modules) == ""


# The command ------------------------------------------------------------------------------------


def _parsers() -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """`safesock`, and each of its commands."""
    parser = cli._parser()
    yield [], parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                yield [name], one


@pytest.mark.parametrize(
    ("command", "parser"),
    [pytest.param(*one, id=" ".join(["safesock", *one[0]])) for one in _parsers()],
)
def test_the_help_names_every_option(
    environment: Environment, command: list[str], parser: argparse.ArgumentParser
) -> None:
    ended = environment.ended("safesock", *command, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = {word.strip("[](),|") for word in ended.stdout.split()}
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            assert set(action.option_strings) <= told
            assert action.option_strings or str(action.metavar) in ended.stdout


def test_the_demo_shows_that_safesock_leaves_nothing(environment: Environment) -> None:
    ended = environment.ended("safesock", "demo")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "CLOSE_WAIT" in ended.stdout


def started(environment: Environment, command: list[str], peer: Peer) -> subprocess.Popen[str]:
    """A client that the peer has closed on."""
    host, port = peer.address
    process = subprocess.Popen(
        environment.command(*command, "-c", CLIENT, host, str(port)),
        cwd=environment.home,
        env=environment.variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


def test_an_audit_finds_what_a_program_leaves(environment: Environment, peer: Peer) -> None:
    with started(environment, ["python"], peer) as client:
        peer.accept().half_close()
        audit = ["safesock", "audit", "--pid", str(client.pid)]
        wait_until(lambda: environment.ended(*audit).returncode == 1, "the FIN arrives")
        plain = environment.ended(*audit)
        (found,) = json.loads(environment.ended(*audit, "--json").stdout)
        client.communicate()
    assert plain.stderr == ""
    assert "1 connection in CLOSE_WAIT" in plain.stdout
    assert (found["pid"], found["state"], found["found"]) == (client.pid, "CLOSE_WAIT", True)


def test_an_audit_that_lives_takes_the_extra_that_it_names(bare: Environment) -> None:
    ended = bare.ended("safesock", "audit", "--watch")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "safesock: error: --watch takes rich: pip install 'safesock[cli]'\n"


def test_run_ends_what_a_program_leaves(environment: Environment, peer: Peer) -> None:
    run = ["safesock", "run", "--grace", "0.05", "--", "python"]
    with started(environment, run, peer) as client:
        end = peer.accept()
        end.half_close()
        assert end.read_to_end() == (b"", EOF)  # Its owner does nothing meanwhile.
        printed, complaints = client.communicate()
    assert (client.returncode, printed, complaints) == (0, "b''\n", "")


# Types ------------------------------------------------------------------------------------------


def test_the_types_are_complete(full: Environment) -> None:
    checker = Path(sys.prefix, "bin", "pyright")
    told = full.ended(checker, "--verifytypes", "safesock", "--ignoreexternal", "--outputjson")
    found = json.loads(told.stdout)["typeCompleteness"]
    assert Path(found["pyTypedPath"]) == full.packages / "safesock" / "py.typed"
    # Its text for people has no more than this.
    wrong = {
        symbol["name"]: [one["message"] for one in symbol["diagnostics"]]
        for symbol in found["symbols"]
        if symbol["diagnostics"] or not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    assert wrong == {}
    assert found["completenessScore"] == 1
    assert told.returncode == 0


def strict(environment: Environment, program: Path) -> list[str]:
    """What `mypy --strict` tells of it."""
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental"]
    python = environment.command("python")
    ended = environment.ended(*mypy, "--python-executable", *python, program)
    *told, last = ended.stdout.splitlines()
    assert last == "Success: no issues found in 1 source file", ended.stdout + ended.stderr
    return told


def test_a_strict_program_gets_the_types_that_it_expects(environment: Environment) -> None:
    assert strict(environment, Path(__file__).parent / "strict_program.py") == []


def test_every_public_name_has_a_type(bare: Environment, tmp_path: Path) -> None:
    modules = (safesock, safesock.asyncio, safesock.testing)
    names = [f"{one.__name__}.{name}" for one in modules for name in one.__all__]
    lines = [f"import {one.__name__}" for one in modules]
    lines += [f"reveal_type({name})" for name in names]
    program = tmp_path / "program.py"
    program.write_text("\n".join(lines), encoding="utf-8")
    told = strict(bare, program)
    assert len(told) == len(names)
    assert [line for line in told if 'type is "Any"' in line] == []
