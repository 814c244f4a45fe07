"""`safesock_leaks`: the part of the pytest plugin that looks for what tests leave behind. It is
there only in a session that has asked for it."""

from __future__ import annotations

import contextlib

import pytest

from safesock import _kernel, _leaks_words
from safesock._leaks import Leak, Ledger, Maker
from safesock.testing import LeakedConnectionWarning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any, TypeAlias

    Wrapper: TypeAlias = Generator[None, Any, Any]

_OFF, _WARN = "off", "warn"


def plugin(mode_of: Callable[[pytest.Item], str], default: str) -> object:
    """*mode_of* tells what is asked for with a test; *default* is what is, without a mark."""
    return Plugin(mode_of, default) if _kernel.LINUX else Blind()


class Blind:
    """Where there is nothing to look with."""

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line."""
        terminalreporter.write_line("safesock_leaks takes Linux: no connection was looked at")


class Plugin:
    """A test is judged after its teardown: all fixtures that end with it have ended."""

    def __init__(self, mode_of: Callable[[pytest.Item], str], default: str) -> None:
        self._mode_of = mode_of
        self._default = default
        self._ledger = Ledger()
        # None while a test runs that nobody has asked for.
        self._test: Maker | None = None
        self._has_failed = False
        # Why nothing could be seen.
        self._error: OSError | None = None
        # Those of wider scope than a function's, while they live; and those that have just ended.
        self._fixtures: dict[pytest.FixtureDef[Any], Maker] = {}
        self._ended: set[Maker] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapper:
        """A test begins."""
        self._test, self._has_failed, self._error = None, False, None
        wrong = None
        try:
            mode = self._mode_of(item)
        except pytest.UsageError as error:
            mode, wrong = _OFF, str(error)
        if mode != _OFF or self._default != _OFF:
            self._begin(Maker(item.nodeid, mode))
        else:
            self._ledger.pause()
        result = yield
        if wrong is not None:  # Now: others rely in their teardown on what they have set up.
            pytest.fail(wrong, pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Wrapper:
        """What is made meanwhile is the fixture's, if it is to outlive the test."""
        if fixturedef.scope == "function":
            return (yield)
        fixture = Maker(f"the fixture {fixturedef.argname!r} ({fixturedef.scope} scope)", _OFF)
        self._fixtures[fixturedef] = fixture
        if self._test is None:
            return (yield)
        with self._ledger.setting_up(fixture):
            value = yield
        # The test that comes first does not decide for all.
        fixture.mode = self._test.mode if self._default == _OFF else self._default
        return value

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """A fixture has ended: what it has left is judged with the test."""
        fixture = self._fixtures.pop(fixturedef, None)
        if fixture is not None:
            self._ended.add(fixture)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Wrapper:
        """What failed in its middle has not come to where it closes."""
        report = yield
        if call.when != "teardown" and (report.failed or _is_xfailed(report)):
            self._has_failed = True
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Wrapper:
        """The test has ended."""
        try:
            result = yield
        except BaseException:
            self._has_failed = True
            with contextlib.suppress(OSError):
                self._end()
            raise
        self._tell(item, self._judge(is_last=nextitem is None))
        return result

    def pytest_sessionfinish(self) -> None:
        """Nothing more is looked at."""
        self._ledger.close()

    def _begin(self, test: Maker) -> None:
        try:
            self._ledger.begin()
            self._test = test
        except OSError as error:
            self._error = error

    def _end(self) -> set[Maker]:
        """Who is to be judged now."""
        test, self._test = self._test, None
        if test is not None:
            if self._has_failed:
                test.mode = _OFF
            alive = [(fixture, _held_by(made)) for made, fixture in self._fixtures.items()]
            self._ledger.end(test, alive)
        return {test} | self._ended if test is not None else self._ended

    def _judge(self, *, is_last: bool) -> list[Leak]:
        try:
            makers = self._end()
            self._ended = set()
            return self._ledger.left(None if is_last else makers)
        except OSError as error:
            self._error = error
            return []

    def _tell(self, item: pytest.Item, leaks: list[Leak]) -> None:
        if self._error is not None:  # No descriptor is free: no failure of the test.
            text = f"safesock_leaks: the connections of this test were not looked at: {self._error}"
            item.warn(pytest.PytestWarning(text))
        warnings = [leak for leak in leaks if leak.maker.mode == _WARN]
        failures = [leak for leak in leaks if leak.maker.mode != _WARN]
        texts = [*self._warn(item, warnings)]
        if failures:
            texts.append(_leaks_words.message(failures, item.config.rootpath))
        if texts:
            pytest.fail("\n\n".join(texts), pytrace=False)

    def _warn(self, item: pytest.Item, leaks: list[Leak]) -> Iterator[str]:
        """What to fail with, where that warning is an error."""
        if leaks:
            try:
                text = _leaks_words.message(leaks, item.config.rootpath)
                item.warn(LeakedConnectionWarning(text))
            except LeakedConnectionWarning as error:
                yield f"LeakedConnectionWarning: {error}"


def _held_by(made: pytest.FixtureDef[Any]) -> object:
    """The value of a fixture, and what ends it: the variables of a generator are that."""
    value = None if made.cached_result is None else made.cached_result[0]
    return value, *getattr(made, "_finalizers", ())


def _is_xfailed(report: pytest.TestReport) -> bool:
    return report.skipped and hasattr(report, "wasxfail")
