"""The package as a user gets it: built from the checkout, installed in clean environments."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import venv
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMEOUT = 300
# What the project itself works with; the other extras are for users.
OF_DEVELOPERS = {"bench", "clients", "docs", "lint", "release", "test"}
# What leads a Python, or a tool of it, anywhere else than into its own environment.
_LEADS_ELSEWHERE = ("MYPY", "PYTEST", "PYTHON", "SAFESOCK", "VIRTUAL_ENV")


class Environment:
    """A virtual environment, whose commands run as its user would run them: in a folder of theirs,
    and with nothing that leads to the checkout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.home = folder / "home"

    @property
    def packages(self) -> Path:
        (found,) = self._folder.glob("lib/python*/site-packages")
        return found

    @property
    def variables(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_LEADS_ELSEWHERE)
        }
        return kept | {"PATH": f"{self._folder / 'bin'}{os.pathsep}{kept['PATH']}"}

    def make(self, *requirements: str) -> None:
        venv.create(self._folder, with_pip=True)
        self.home.mkdir()
        self.run("pip", "install", "-q", *requirements)

    def command(self, program: str | Path, *arguments: str | Path) -> list[str]:
        """A program of the environment, or any other by its path."""
        return [str(self._folder / "bin" / program), *map(str, arguments)]

    def ended(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command),
            cwd=self.home,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def run(self, *command: str | Path) -> str:
        """What it prints. It has to end well."""
        ended = self.ended(*command)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


class Wheel:
    """A built wheel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}

    def information(self, name: str) -> str:
        """One of the files of its dist-info."""
        (text,) = (data for path, data in self.files.items() if path.endswith(f"-info/{name}"))
        return text.decode()

    @property
    def metadata(self) -> Message:
        return Parser().parsestr(self.information("METADATA"))

    @property
    def extras(self) -> set[str]:
        return set(self.metadata.get_all("Provides-Extra", ()))

    @property
    def modules(self) -> set[str]:
        """Those that are public."""
        paths = (Path(name).with_suffix("") for name in self.files if name.endswith(".py"))
        names = (path.parts[: -1 if path.name == "__init__" else None] for path in paths)
        return {".".join(parts) for parts in names if not any(one[0] == "_" for one in parts)}

    def with_extras(self, *extras: str) -> str:
        """As pip takes it."""
        return f"safesock[{','.join(sorted(extras))}] @ {self.path.as_uri()}"


def files_of_the_checkout(*folders: str) -> set[str]:
    """Without what Python and its tools leave there."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and not any(one.startswith((".", "__pycache")) for one in parts):
                found.add("/".join(parts))
    return found


def once(shared: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that *make* fills, for all the processes that run the tests."""
    folder = shared / name
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shared / f"{name}.done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
