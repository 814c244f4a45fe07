"""The pytest plugin: the fixtures `scripted_peer` and `async_scripted_peer`, and `safesock_leaks`.
It imports what it needs when it is asked for."""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from safesock.testing import AsyncScriptedPeer, ScriptedPeer

_NAME = "safesock_leaks"
_OFF = "off"
_MODES = (_OFF, "warn", "fail")
_HELP = (
    "fail or warn: what becomes of a test that leaves one of its TCP connections in CLOSE_WAIT, or "
    "the descriptor of one that is over; off, the default, looks at none"
)
_MARKER = (
    f'{_NAME}(mode="fail"): the test fails if it leaves one of its TCP connections in CLOSE_WAIT, '
    'or the descriptor of one that is over; "warn": with a warning; "off": it may.'
)


@pytest.fixture
def scripted_peer() -> Iterator[ScriptedPeer]:
    """A `safesock.testing.ScriptedPeer` on a free port of 127.0.0.1, closed after the test."""
    from safesock.testing import ScriptedPeer

    with ScriptedPeer() as peer:
        yield peer


@pytest.fixture
def async_scripted_peer() -> Iterator[AsyncScriptedPeer]:
    """A `safesock.testing.AsyncScriptedPeer`, likewise, for coroutines on asyncio. Nothing here is
    awaited: it is for pytest-asyncio, anyio, and asyncio.run in a plain test."""
    from safesock.testing import AsyncScriptedPeer

    peer = AsyncScriptedPeer()
    try:
        yield peer
    finally:
        peer.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of pytest's configuration."""
    parser.addini(_NAME, _HELP, default=_OFF)


def pytest_configure(config: pytest.Config) -> None:
    """Raises pytest.UsageError for what the option does not take."""
    config.addinivalue_line("markers", _MARKER)
    mode = _default(config)
    if mode not in _MODES:
        raise pytest.UsageError(f"{_NAME} takes {', '.join(_MODES[:-1])} or fail: not {mode!r}")
    if mode != _OFF:
        _begin(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    """A mark asks for it, too."""
    if not session.config.pluginmanager.has_plugin(_NAME) and any(
        item.get_closest_marker(_NAME) for item in session.items
    ):
        _begin(session.config)


def _default(config: pytest.Config) -> str:
    return str(config.getini(_NAME)).strip() or _OFF


def _mode_of(item: pytest.Item) -> str:
    """What the mark says, or else the configuration. Raises pytest.UsageError."""
    mark = item.get_closest_marker(_NAME)
    if mark is None:
        return _default(item.config)
    said = (*mark.args, *mark.kwargs.values()) or ("fail",)
    if len(said) > 1 or not mark.kwargs.keys() <= {"mode"} or said[0] not in _MODES:
        words = ", ".join(f'"{mode}"' for mode in _MODES)
        raise pytest.UsageError(f"the mark {_NAME} takes one of {words}: not {said!r}")
    return str(said[0])


def _begin(config: pytest.Config) -> None:
    from safesock import _pytest_leaks

    made = _pytest_leaks.plugin(_mode_of, _default(config))
    config.pluginmanager.register(made, _NAME)
