"""The site of docs/: it builds without a warning, has all that is public, and is read offline."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import safesock

ROOT = Path(__file__).parent.parent
PACKAGE = Path(safesock.__file__).parent
PAGES = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
# What a browser fetches by itself; a link is followed by its reader.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|object)[^>]*(?:src|data)=["']?(?:https?:)?//"""
    r"""|<link[^>]*rel="(?:stylesheet|preload|icon|preconnect)"[^>]*href="(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//|@import ["'](?:https?:)?//"""
)

pytestmark = [pytest.mark.campaign, pytest.mark.once]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "docs", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    assert built.stdout.strip() == str(folder / "index.html")
    return folder


def public_modules() -> dict[str, Path]:
    """Those without an underscore, but for the command."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        if "._" not in module and module != "safesock.cli":
            found[module] = path
    return found


def names_in(file: Path) -> list[str]:
    """Its `__all__`, without importing what it may need."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise AssertionError(f"a public module says what is public in it: {file}")


def test_every_page_is_there(site: Path) -> None:
    assert {"index.html", "reference.html", "close-wait.html", "search.html"} <= {
        path.name for path in site.iterdir()
    }
    for page in PAGES:
        assert (site / page.with_suffix(".html")).exists()


def test_every_page_is_in_the_menu(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        link = "#" if page.name == "index.md" else str(page.with_suffix(".html"))
        assert f'href="{link}"' in index


@pytest.mark.parametrize("module", public_modules())
def test_everything_public_is_in_the_reference(site: Path, module: str) -> None:
    reference = (site / "reference.html").read_text(encoding="utf-8")
    for name in names_in(public_modules()[module]):
        # One or more signatures, then what its docstring says.
        head = rf'id="{re.escape(f"{module}.{name}")}"(?:(?!</dt>).)*</dt>'
        more = r'(?:\s*<dt class="sig (?:(?!</dt>).)*</dt>)*'
        assert re.search(rf"{head}{more}\s*<dd><p>[\w<]", reference, re.DOTALL), name


def test_fields_are_explained_one_by_one(site: Path) -> None:
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert re.search(r"<dt>.*?grace.*?</dt>\s*<dd><p>seconds an owner has to react", reference)
    assert re.search(r"<dt>.*?&quot;release&quot;.*?</dt>\s*<dd><p>ends the connection;", reference)


def test_code_in_a_docstring_is_code(site: Path) -> None:
    reference = (site / "reference.html").read_text(encoding="utf-8")
    blocks = re.findall(r"<pre>(.*?)</pre>", reference, re.DOTALL)
    code = [re.sub(r"<.*?>", "", block) for block in blocks]
    assert any("safesock.prometheus.instrument()\n...\nbody = " in block for block in code)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > len(PAGES)
    for file in files:
        found = FETCHED.search(file.read_text(encoding="utf-8"))
        assert found is None, (file, found)


def test_it_is_only_built_without_a_warning(tmp_path: Path) -> None:
    """A link that leads nowhere is found."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for file in ("__init__.py", "__main__.py", "conf.py", "reference.py", "reference.rst"):
        (docs / file).write_bytes((ROOT / "docs" / file).read_bytes())
    (docs / "static").mkdir()
    (docs / "static" / "wide-tables.css").write_text("")
    (docs / "index.md").write_text("# One\n\n```{toctree}\nreference\n```\n\n[two](two.md)\n")
    command = [sys.executable, "-m", "docs", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode
    assert "two.md" in built.stderr
