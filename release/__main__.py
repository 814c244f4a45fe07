"""Checks that this checkout can be released as it is, and says what to do where it cannot.

Nothing is changed, tagged or uploaded. The last three checks build the package twice, in folders of
their own, and install it: they take the extra, pip install -e '.[release]', and pip's index.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from release import built, tree

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
# What each check is called, and what it finds wrong, in words.
TREE: dict[str, Callable[[Path], list[str]]] = {
    "all is committed": tree.uncommitted,
    "one version, that is final": tree.version_problems,
    "it has no tag yet": tree.tag_problems,
    "the changelog tells of it": tree.changelog_problems,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release",
        description=__doc__,
        epilog="exit status: 0 if all is well, 1 if something is not, 2 for wrong arguments",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="only what takes no build")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help=f"default: {ROOT}")
    options = parser.parse_args(arguments)
    if not (options.folder / "pyproject.toml").exists():
        parser.error(f"there is no pyproject.toml in {options.folder}")
    problems = sum(tell(what, check, options.folder) for what, check in TREE.items())
    if not options.quick:
        problems += check_what_is_built(options.folder)
    return 1 if problems else 0


def tell(what: str, check: Callable[[Path], list[str]], of: Path) -> int:
    """Makes a check, and prints what it finds; how much that is."""
    try:
        found = check(of)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()[-1:]
        found = [" ".join([f"cannot be checked: {error}", *said])]
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        found = [f"cannot be checked: it takes {package}: pip install -e '.[release]'"]
    print(f"{'wrong' if found else 'ok':5}  {what}", flush=True)
    for problem in found:
        print(f"       {problem}", flush=True)
    return len(found)


def check_what_is_built(folder: Path) -> int:
    """How much is wrong with it."""
    with tempfile.TemporaryDirectory(prefix="safesock-release-") as work:
        first, second = Path(work, "a"), Path(work, "b", "elsewhere")

        def same_twice(folder: Path) -> list[str]:
            packed = Path(work, "commit.tar")
            tree.be_checkout(folder)
            built.pack(folder, packed)
            built.build(packed, first, umask=0o022, seconds=0)
            built.build(packed, second, umask=0o077, seconds=86_400)
            return built.differences(first / "dist", second / "dist")

        def installs(folder: Path) -> list[str]:
            return built.install_problems(first / "dist", tree.version(folder), Path(work, "venv"))

        problems = tell("two builds give the same bytes", same_twice, folder)
        for what, check in (
            ("the metadata is what an index takes", lambda _: built.metadata_of(first / "dist")),
            ("the wheel can be installed and used", installs),
        ):
            if built.is_complete(first / "dist"):
                problems += tell(what, check, folder)
            else:
                print(f"{'-':5}  {what}: not checked, as nothing was built", flush=True)
        for path in sorted(first.glob("dist/*")):
            print(f"{built.sha256(path)}  {path.name}")
        return problems


if __name__ == "__main__":
    sys.exit(main())
