"""`python -m release`: each check finds what is wrong in a copy of the tree that is broken."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import safesock
from release import __main__ as command
from release import built, tree
from safesock import cli

ROOT = Path(__file__).parent.parent
FILES = ("pyproject.toml", "CHANGELOG.md", "docs/conf.py", tree.VERSION)
OWN = safesock.__version__
HEADING = f"## [{OWN}] - "
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="it takes git")


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=no"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def copied(folder: Path, names: list[str]) -> Path:
    """A copy of these files of the tree, with a changelog that is ready."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    ready = f"# Changelog\n\n## [Unreleased]\n\n{HEADING}2026-01-31\n\n### Added\n\n- All.\n"
    (folder / "CHANGELOG.md").write_text(ready, encoding="utf-8")
    return folder


def committed(folder: Path) -> Path:
    """The same folder, with all that is in it."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "All that is released")
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path, list(FILES))


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return act


# The tree -----------------------------------------------------------------------------------------

BROKEN: list[tuple[str, tuple[str, str, str], str]] = [
    (
        "one version, that is final",
        (tree.VERSION, f'"{OWN}"', f'"{OWN}.dev1"'),
        f"{OWN}.dev1 is no final version: write it as 1.2.3 in {tree.VERSION}",
    ),
    (
        "one version, that is final",
        (tree.VERSION, "__version__ = ", "__release__ = "),
        "has no line __version__ = ...",
    ),
    (
        "one version, that is final",
        ("pyproject.toml", 'dynamic = ["version"]', f'version = "{OWN}"'),
        "has to take the version from",
    ),
    (
        "one version, that is final",
        ("docs/conf.py", "release = safesock.__version__", 'release = "9.8.7"'),
        f"docs/conf.py says version 9.8.7, and the package {OWN}",
    ),
    (
        "the changelog tells of it",
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- More.\n"),
        f"move what is under [Unreleased] to [{OWN}], and keep it",
    ),
    (
        "the changelog tells of it",
        ("CHANGELOG.md", HEADING, "## [0.0.9] - "),
        f"CHANGELOG.md has no section ## [{OWN}] - YEAR-MONTH-DAY",
    ),
    (
        "the changelog tells of it",
        ("CHANGELOG.md", HEADING, f"## [99.0.0] - 2026-01-01\n\n- Later.\n\n{HEADING}"),
        f"the section of {OWN} has to be the first",
    ),
    (
        "the changelog tells of it",
        ("CHANGELOG.md", "### Added\n\n- All.\n", ""),
        f"CHANGELOG.md tells nothing of {OWN}",
    ),
    (
        "the changelog tells of it",
        ("CHANGELOG.md", "2026-01-31", "31.1.2026"),
        "has to be YEAR-MONTH-DAY: not '31.1.2026'",
    ),
    (
        "the changelog tells of it",
        ("CHANGELOG.md", "2026-01-31", "9999-12-31"),
        f"the date of {OWN} is still to come: 9999-12-31",
    ),
]


@pytest.mark.parametrize(("check", "damage", "told"), BROKEN, ids=[one[2] for one in BROKEN])
def test_a_tree_that_is_broken_is_told_of(
    check: str,
    damage: tuple[str, str, str],
    told: str,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.tell(check, command.TREE[check], copy) == 0
    change(*damage)(copy)
    assert command.tell(check, command.TREE[check], copy)
    printed = capsys.readouterr().out
    assert printed.startswith(f"ok     {check}\nwrong  {check}\n       ")
    assert told in printed


@needs_git
def test_what_git_says_is_told_of(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(status: int) -> str:
        assert command.main(["--quick", str(copy)]) == status
        return capsys.readouterr().out

    no_checkout = f"cannot be checked: {copy} is no git checkout: fatal: "
    assert told(1).count(no_checkout) == 2
    assert command.check_what_is_built(copy) == 1
    assert no_checkout in capsys.readouterr().out
    committed(copy)
    right = re.findall(r"^(\w+) +(.*)$", told(0), re.MULTILINE)
    assert right == [("ok", what) for what in command.TREE]
    (copy / "stray").touch()
    change("CHANGELOG.md", "All.", "All!")(copy)
    git(copy, "tag", f"v{OWN}")
    printed = told(1)
    assert "wrong  all is committed\n       commit or remove it:  M CHANGELOG.md\n" in printed
    assert "       commit or remove it: ?? stray\n" in printed
    assert f"wrong  it has no tag yet\n       there is a tag v{OWN}: {tree.VERSION} has" in printed


def test_a_folder_that_is_no_project_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([str(tmp_path)])
    assert ended.value.code == 2


# This one -----------------------------------------------------------------------------------------


def test_the_version_is_one_and_in_one_place() -> None:
    assert tree.version(ROOT) == OWN
    assert tree.version_problems(ROOT) == []


def test_the_changelog_has_an_unreleased_section_and_one_of_each_version() -> None:
    sections = tree.changes(ROOT)
    first, *released = sections
    assert first == "Unreleased"
    assert released[0] == OWN
    for version in released:
        date, text = sections[version]
        assert datetime.date.fromisoformat(date)
        assert "- " in text


def commands() -> list[str]:
    return sorted(set(re.findall(r"^    (\w+)  ", cli._parser().format_help(), re.MULTILINE)))


def adapters() -> list[str]:
    """The clients that there is a recipe for."""
    return sorted(path.stem for path in (ROOT / "docs" / "recipes").glob("*.md"))


def test_the_changelog_names_all_that_is_public() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert commands() == ["audit", "connect", "demo", "run"]
    names = [f"safesock {name}" for name in commands()] + safesock.__all__
    assert [name for name in names if not re.search(rf"`{name}\b", text)] == []
    extras = {"http-client", "any-client", "asyncio-streams"}  # They take no adapter.
    plain = text.lower().replace("-py", "")
    assert [one for one in adapters() if one not in extras and one not in plain] == []


def test_the_policy_of_security_names_the_version_and_nobody() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"| {OWN.rpartition('.')[0]} | yes |" in text
    assert re.findall(r"\S+@\S+|https?:\S+", text) == []


# What is built ------------------------------------------------------------------------------------

METADATA = f"""\
Metadata-Version: 2.4
Name: safesock
Version: {OWN}
Summary: Sockets
License-Expression: MIT
License-File: LICENSE
Keywords: socket
Requires-Python: >=3.11
Description-Content-Type: text/markdown

# safesock
"""


def test_builds_that_differ_are_told_of_by_name(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        for name in ("safesock.tar.gz", "safesock.whl"):
            (folder / name).write_bytes(b"the same")
    assert built.differences(*folders) == []
    (folders[1] / "safesock.whl").write_bytes(b"another")
    (problem,) = built.differences(*folders)
    assert problem.startswith("safesock.whl comes out otherwise each time: ")
    (folders[1] / "safesock.whl").unlink()
    assert built.differences(*folders)[0].endswith(", missing")
    (folders[0] / "safesock.whl").unlink()
    assert built.differences(*folders) == [
        "an sdist and a wheel were to be built, and not safesock.tar.gz"
    ]


@needs_git
@pytest.mark.parametrize("package", ["build", "hatchling"])
def test_without_what_builds_nothing_more_is_checked(
    package: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("build", "hatchling"):
        found = None if name == package else sys
        monkeypatch.setitem(sys.modules, name, found)
    assert command.main([str(committed(copy))]) == 1
    _, _, printed = capsys.readouterr().out.partition("wrong  ")
    assert printed.splitlines() == [
        "two builds give the same bytes",
        f"       cannot be checked: it takes {package}: pip install -e '.[release]'",
        "-      the metadata is what an index takes: not checked, as nothing was built",
        "-      the wheel can be installed and used: not checked, as nothing was built",
    ]


def test_what_judges_the_metadata_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "packaging.metadata", None)
    assert command.tell("the metadata", lambda _: built.metadata_problems(METADATA), ROOT) == 1
    told = "it takes packaging: pip install -e '.[release]'"
    assert told in capsys.readouterr().out


@pytest.mark.campaign
@pytest.mark.once
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "", None),
        ("Name: safesock", "Name: safe sock!", "name"),
        (f"Version: {OWN}", "Version: one", "version"),
        ("Summary: Sockets\n", "", "the metadata has no Summary"),
        ("Keywords: socket\n", "", "the metadata has no Keywords"),
        ("MIT", "My own", "license"),
        (">=3.11", "3 or later", "requires-python"),
        ("text/markdown", "text/plain", "has to be text/markdown"),
        ("# safesock", "safesock", "has no heading"),
    ],
)
def test_metadata_that_an_index_would_refuse_is_told_of(
    old: str, new: str, told: str | None
) -> None:
    pytest.importorskip("readme_renderer", reason="it takes the extra safesock[release]")
    problems = built.metadata_problems(METADATA.replace(old, new))
    assert bool(problems) == (told is not None)
    assert told is None or told.lower() in " ".join(problems).lower()


def tracked() -> list[str]:
    """The files of this checkout, as far as they are still there."""
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


of_a_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="that is no checkout")


@needs_git
@of_a_checkout
@pytest.mark.campaign
@pytest.mark.once
def test_all_of_it_passes_on_a_tree_that_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = command.main([str(committed(copied(tmp_path, tracked())))])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert printed.count("ok     ") == len(command.TREE) + 3
    assert len(re.findall(r"^[0-9a-f]{64}  safesock-.*\.(?:tar\.gz|whl)$", printed, re.M)) == 2


CLOCK = """
import time
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
class Clock(BuildHookInterface):
    def initialize(self, version, build_data):
        with open("src/safesock/_clock.py", "w") as file:
            file.write(f"NOW = {time.time_ns()}")
"""


@needs_git
@pytest.mark.campaign
@pytest.mark.once
def test_a_build_that_is_no_twin_of_the_first_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(tmp_path, [*FILES, "README.md", "LICENSE"])
    (copy / "hatch_build.py").write_text(CLOCK, encoding="utf-8")
    change("pyproject.toml", "[tool.ruff]\n", "[tool.hatch.build.hooks.custom]\n\n[tool.ruff]\n")(
        copy
    )
    committed(copy)
    assert command.main([str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "wrong  two builds give the same bytes\n" in printed
    # Of the package only its first file was copied: it cannot be imported.
    assert "wrong  the wheel can be installed and used\n" in printed
    assert "No module named" in printed


def test_the_command_says_what_it_does() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "release", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--quick" in ended.stdout
    assert "pip install -e '.[release]'" in ended.stdout
