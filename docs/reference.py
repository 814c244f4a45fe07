"""The API reference: what is public, and docstrings as they are written here."""

from __future__ import annotations

import pkgutil
import re
from typing import TYPE_CHECKING, Any

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.parsing import nested_parse_to_nodes

import safesock

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

# "name: what it is", or "one, another: ..."; and `"value": what it does`, which may come anywhere.
# Names of metrics have dots.
_FIELD = re.compile(r"([\w.]+(?:, [\w.]+)*): (.+)")
_VALUE = re.compile(r'("\w+"): (.+)')
_INDENT = "    "
_COMMAND = "safesock.cli"


def public_modules() -> list[str]:
    """`safesock` first, then all in it whose name has no underscore."""
    found = (module.name for module in pkgutil.walk_packages(safesock.__path__, "safesock."))
    names = (name for name in found if "._" not in name and name != _COMMAND)
    return ["safesock", *sorted(names)]


def with_definitions(lines: list[str], *, begins: bool = False) -> list[str]:
    """A docstring's lines, with definition lists where fields are explained, and code as such.

    *begins*: whether a field may come first. It may after an empty line, and after another one.
    """
    made: list[str] = []
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        if line.startswith(_INDENT) and made[-1:] == [""]:  # Code, or a table.
            made += ["::", ""]
            while line.startswith(_INDENT) or (not line and rest and rest[0].startswith(_INDENT)):
                made.append(line)
                line = rest.pop(0) if rest else ""
            begins = False
        field = _VALUE.fullmatch(line) or (_FIELD.fullmatch(line) if begins else None)
        if field is None:
            made.append(line)
            begins = not line
            continue
        body = [field[2]]
        while rest and rest[0].startswith(_INDENT):
            body.append(rest.pop(0).removeprefix(_INDENT))
        names = ", ".join(f"``{name}``" for name in field[1].split(", "))
        made += ["", names, *(_INDENT + part for part in with_definitions(body)), ""]
        begins = True
    return made


class PublicModules(SphinxDirective):
    """`.. public-modules::`: a section for each of them, with all that its `__all__` names."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name in public_modules():
            lines += [name, "-" * len(name), "", f".. automodule:: {name}", ""]
        return nested_parse_to_nodes(self.state, StringList(lines, source=self.get_location()))


def _process(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    lines[:] = with_definitions(lines)


def _is_not_ours(_app: Sphinx, what: str, _name: str, obj: Any, skip: bool, _options: Any) -> bool:
    """Of what a class has inherited, what our own private ones gave it is told, and no more."""
    if what == "module":  # Its `__all__` has said what is ours.
        return skip
    function = getattr(obj, "fget", getattr(obj, "__func__", obj))
    return skip or not str(getattr(function, "__module__", "")).startswith("safesock")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("public-modules", PublicModules)
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _is_not_ours)
    return {"parallel_read_safe": True}
