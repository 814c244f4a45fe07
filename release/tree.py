"""What is checked of the checkout itself. Each check gives what is wrong, in words."""

from __future__ import annotations

import datetime
import re
import subprocess
import tomllib
from pathlib import Path

VERSION = "src/safesock/__init__.py"
CHANGELOG = "CHANGELOG.md"
# PEP 440, as far as it is a final release.
_FINAL = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_HEADING = re.compile(r"^## \[(.+?)\](?: - (.+))?$", re.MULTILINE)
# Where a version could stand that is not the package's own.
_OTHERS = ("pyproject.toml", "docs/conf.py", "src/safesock/__init__.py")
_SET = re.compile(r"^\s*(?:__version__|version|release)\b[^=\n]*=.*?[\"'](\d[^\"']*)[\"']", re.M)


def version(folder: Path) -> str:
    """The one of the package. Raises OSError where it says none."""
    found = re.search(r'^__version__ = "(.*)"$', (folder / VERSION).read_text("utf-8"), re.M)
    if found is None:
        raise OSError(f"{VERSION} has no line __version__ = ...")
    return found[1]


def uncommitted(folder: Path) -> list[str]:
    lines = _git(folder, "status", "--porcelain").splitlines()
    more = [] if len(lines) <= 5 else [f"and {len(lines) - 5} more"]
    return [f"commit or remove it: {line}" for line in lines[:5]] + more


def version_problems(folder: Path) -> list[str]:
    own = version(folder)
    problems = []
    if not _FINAL.fullmatch(own):
        problems.append(f"{own} is no final version: write it as 1.2.3 in {VERSION}")
    hatch = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    if "version" in hatch["project"] or hatch["tool"]["hatch"]["version"]["path"] != VERSION:
        problems.append(f"pyproject.toml has to take the version from {VERSION}")
    for name in _OTHERS:
        for other in _SET.findall((folder / name).read_text("utf-8")):
            if other != own:
                problems.append(f"{name} says version {other}, and the package {own}")
    return problems


def tag_problems(folder: Path) -> list[str]:
    own = version(folder)
    tags = _git(folder, "tag", "--list", own, f"v{own}").split()
    return [f"there is a tag {tag}: {VERSION} has to have a later version" for tag in tags]


def changelog_problems(folder: Path) -> list[str]:
    own = version(folder)
    sections = changes(folder)
    problems = []
    if sections.pop("Unreleased", ("", "-"))[1]:
        problems.append(f"in {CHANGELOG} move what is under [Unreleased] to [{own}], and keep it")
    if own not in sections:
        return [*problems, f"{CHANGELOG} has no section ## [{own}] - YEAR-MONTH-DAY"]
    if own != next(iter(sections)):
        problems.append(f"in {CHANGELOG} the section of {own} has to be the first")
    date, text = sections[own]
    if not text:
        problems.append(f"{CHANGELOG} tells nothing of {own}")
    try:
        if datetime.date.fromisoformat(date) > datetime.datetime.now().astimezone().date():
            problems.append(f"in {CHANGELOG} the date of {own} is still to come: {date}")
    except ValueError:
        problems.append(f"in {CHANGELOG} the date of {own} has to be YEAR-MONTH-DAY: not {date!r}")
    return problems


def changes(folder: Path) -> dict[str, tuple[str, str]]:
    """The date and the text of each section of the changelog."""
    text = (folder / CHANGELOG).read_text("utf-8")
    found = list(_HEADING.finditer(text))
    ends = [one.start() for one in found[1:]] + [len(text)]
    return {
        one[1]: (one[2] or "", text[one.end() : end].strip())
        for one, end in zip(found, ends, strict=True)
    }


def be_checkout(folder: Path) -> None:
    """Raises OSError where it is none."""
    command = ["git", "-C", str(folder), "rev-parse", "--git-dir"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        raise OSError(" ".join([f"{folder} is no git checkout:", *asked.stderr.splitlines()[-1:]]))


def _git(folder: Path, *arguments: str) -> str:
    be_checkout(folder)
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
