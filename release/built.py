"""What is checked of the sdist and the wheel. Each check gives what is wrong, in words."""

from __future__ import annotations

import email.parser
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

# What Python, pip or git are told by the environment is not for what is built and installed here.
_LEADS_ELSEWHERE = ("GIT_", "PYTHON", "SAFESOCK", "SOURCE_DATE_EPOCH", "VIRTUAL_ENV")


def pack(folder: Path, packed: Path) -> None:
    """What is committed, as a tar file."""
    _run("git", "-C", str(folder), "archive", "--format=tar", f"--output={packed}", "HEAD")


def build(packed: Path, into: Path, *, umask: int, seconds: int) -> None:
    """Unpacks it in a folder of its own, as a checkout with this umask would have, so many seconds
    ago, and builds sdist and wheel there, in `dist`. Raises ModuleNotFoundError."""
    for name in ("build", "hatchling"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    into.mkdir(parents=True)
    with tarfile.open(packed) as archive:
        archive.extractall(into, filter="data")
    then = time.time() - seconds
    for path in into.rglob("*"):
        path.chmod(path.stat().st_mode & ~umask)
        os.utime(path, (then, then))
    # In this environment, which has the backend: so that it works without an index.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into / "dist")]
    _run(*command, str(into), umask=umask)


def is_complete(dist: Path) -> bool:
    """Whether there is an sdist, and a wheel."""
    return sorted(path.suffix for path in dist.glob("*")) == [".gz", ".whl"]


def differences(first: Path, second: Path) -> list[str]:
    """Between two folders of what was built."""
    names = {path.name for folder in (first, second) for path in folder.glob("*")}
    if sorted(Path(name).suffix for name in names) != [".gz", ".whl"]:
        return [f"an sdist and a wheel were to be built, and not {', '.join(sorted(names))}"]
    return [
        f"{name} comes out otherwise each time: {sha256(first / name)}, {sha256(second / name)}"
        for name in sorted(names)
        if sha256(first / name) != sha256(second / name)
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def metadata_of(dist: Path) -> list[str]:
    """What is wrong in the metadata of the sdist and the wheel, which have to be the same."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    with tarfile.open(sdist) as packed:
        file = packed.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert file is not None
        problems = [] if file.read().decode() == text else ["the sdist has other metadata"]
    return [*problems, *metadata_problems(text)]


def metadata_problems(text: str) -> list[str]:
    """As an index judges it, and with what a reader looks for first."""
    from packaging.metadata import Metadata
    from readme_renderer import markdown

    fields = email.parser.Parser().parsestr(text)
    wanted = ("Summary", "Requires-Python", "License-Expression", "License-File", "Keywords")
    problems = [f"the metadata has no {name}" for name in wanted if not fields[name]]
    try:
        Metadata.from_email(text, validate=True)
    except ExceptionGroup as group:
        problems += [str(error) for error in group.exceptions]
    if fields["Description-Content-Type"] != "text/markdown":
        problems.append("the description has to be text/markdown")
    elif "<h1" not in (markdown.render(str(fields.get_payload())) or ""):
        problems.append("the description cannot be rendered, or has no heading")
    return problems


def install_problems(dist: Path, version: str, folder: Path) -> list[str]:
    """What is wrong with the wheel in a new virtual environment, made in *folder*."""
    (wheel,) = dist.glob("*.whl")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    _run(str(programs / "python"), "-m", "pip", "install", "-q", str(wheel))
    problems = []
    for command, expected in (
        (["python", "-W", "error", "-c", "import safesock; print(safesock.__version__)"], version),
        (["safesock", "--version"], f"safesock {version}"),
        (["safesock", "--help"], "usage: safesock"),
    ):
        try:
            printed = _run(str(programs / command[0]), *command[1:], cwd=folder)
        except (OSError, subprocess.CalledProcessError) as error:
            last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            problems.append(f"{' '.join(command)} fails: {''.join(last)}")
        else:
            if not printed.startswith(expected):
                problems.append(f"{' '.join(command)} prints {printed.strip()!r}, not {expected!r}")
    return problems


def _run(*command: str, cwd: Path | None = None, umask: int = -1) -> str:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_LEADS_ELSEWHERE)
    }
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=cwd, env=kept, umask=umask
    ).stdout
