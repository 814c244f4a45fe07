"""What commands are told, checked before minutes have passed. All raise ValueError, with the option
and the user's own path."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_Found = TypeVar("_Found")


def check_file(option: str, file: Path) -> None:
    """That it can be written; it is left as it is."""
    if file.is_dir():
        raise ValueError(f"{option} takes a file: {file} is a folder")
    try:
        if file.exists():
            file.open("a", encoding="utf-8").close()
        else:
            with tempfile.TemporaryFile(dir=file.parent):
                pass
    except OSError as error:
        raise _cannot(option, file, error) from None


def check_folder(option: str, folder: Path) -> None:
    """That files can be written into it; it is made where there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot(option, folder, error) from None


def check_drawing(option: str) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{option} takes matplotlib: pip install -e '.[bench]'")


def check_chart(option: str, file: Path) -> None:
    if file.suffix not in (".svg", ".png"):
        raise ValueError(f"{option} takes a .svg or a .png: not {file}")
    check_file(option, file)
    check_drawing(option)


def check_page(option: str, file: Path, written: Callable[[str], str]) -> None:
    """*written*: raises ValueError where the page has no place for what there is to write."""
    text = text_of(option, file)
    try:
        written(text)
    except ValueError as error:
        raise ValueError(f"{option} {file}: {error}") from None
    check_file(option, file)


def found_in(option: str, file: Path, read: Callable[[str], _Found]) -> _Found:
    """What a run before has kept there. *read*: raises ValueError where it is something else."""
    text = text_of(option, file)
    try:
        return read(text)
    except ValueError as error:
        # What a parser of JSON says of it would be of no help, nor what is missing in another's.
        why = f": {error}" if type(error) is ValueError and error.__cause__ is None else ""
        raise ValueError(f"{option} {file}: not the results of a run{why}") from None


def text_of(option: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise _cannot(option, file, error) from None
    except UnicodeDecodeError:
        raise ValueError(f"{option} {file}: no text, but bytes") from None


def _cannot(option: str, path: Path, error: OSError) -> ValueError:
    return ValueError(f"{option} {path}: {error.strerror}")
