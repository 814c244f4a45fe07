from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import safesock
from safesock import Abort, Drain, Graceful, KeepAlive, Linger, Policy, SafeSocket

VALUES: list[Any] = [
    Graceful(),
    Drain(),
    Drain(0),
    Drain(timeout=0.25),
    Linger(),
    Linger(7),
    Abort(),
    KeepAlive(),
    KeepAlive(1, 2, 3),
    KeepAlive(idle=3, interval=2, count=1),
    Policy(),
    Policy(close=Abort()),
    Policy(Drain(1.5), "release", False, 0, True, KeepAlive(4, 5, 6), 7.5, False),
    Policy(on_loss="keep", grace=2.5, reuse_address=False, user_timeout=0.001, nodelay=True),
]

# What takes seconds, what takes whole numbers, what takes True, False or None.
SECONDS: dict[str, Callable[[Any], object]] = {
    "Drain(timeout)": lambda value: Drain(timeout=value),
    "Policy(grace)": lambda value: Policy(grace=value),
    "Policy(user_timeout)": lambda value: Policy(user_timeout=value),
}
WHOLE: dict[str, Callable[[Any], object]] = {
    "Linger(seconds)": lambda value: Linger(seconds=value),
    "KeepAlive(idle)": lambda value: KeepAlive(idle=value),
    "KeepAlive(interval)": lambda value: KeepAlive(interval=value),
    "KeepAlive(count)": lambda value: KeepAlive(count=value),
}
FLAGS: dict[str, Callable[[Any], object]] = {
    "Policy(watch)": lambda value: Policy(watch=value),
    "Policy(reuse_address)": lambda value: Policy(reuse_address=value),
    "Policy(nodelay)": lambda value: Policy(nodelay=value),
}
NUMBERS = SECONDS | WHOLE
each_value = pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, -math.inf, -1, -0.001, 1e9, 1e308, 10**400],
    ids=lambda bad: str(bad)[:9],
)
def test_number_out_of_range_is_refused_by_name(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match="takes") as refused:
        NUMBERS[name](bad)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", [True, False, "1", b"1", 1j, [1], (), object], ids=repr)
def test_number_of_the_wrong_type_is_refused_by_name(name: str, bad: object) -> None:
    with pytest.raises(TypeError, match="takes") as refused:
        NUMBERS[name](bad)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", sorted(NUMBERS.keys() - {"Policy(user_timeout)"}))
def test_none_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match="takes"):
        NUMBERS[name](None)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("bad", [0, 0.0, 0.5, 1.5, 32768, 2**31, 2**63])
def test_what_the_kernel_counts_in_whole_numbers_is_refused_otherwise(
    name: str, bad: float
) -> None:
    with pytest.raises(ValueError, match=r"whole number|Abort\(\)"):
        WHOLE[name](bad)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("bad", [0, 1, "yes", "", 0.0, []], ids=repr)
def test_flag_takes_no_truthy_value(name: str, bad: object) -> None:
    with pytest.raises(TypeError, match="takes True") as refused:
        FLAGS[name](bad)
    assert name in str(refused.value)


def test_watch_is_yes_or_no() -> None:
    with pytest.raises(TypeError, match="watch"):
        Policy(watch=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "good",
    [
        lambda: Drain(0),
        lambda: Drain(86400),
        lambda: Linger(1),
        lambda: Linger(32767),
        lambda: KeepAlive(1, 1, 1),
        lambda: KeepAlive(32767, 32767, 127),
        lambda: Policy(grace=0),
        lambda: Policy(grace=86400.0),
        lambda: Policy(user_timeout=0.001),
        lambda: Policy(user_timeout=86400),
    ],
)
def test_the_limits_themselves_are_accepted(good: Callable[[], object]) -> None:
    good()


@pytest.mark.parametrize("bad", [0, 0.0, 0.0009, 2**31 / 1000], ids=str)
def test_user_timeout_is_a_number_of_milliseconds_that_the_kernel_takes(bad: float) -> None:
    with pytest.raises(ValueError, match="user_timeout"):
        Policy(user_timeout=bad)


def test_whole_numbers_are_ints_whatever_they_were_written_as() -> None:
    seconds: Any = 2.0
    assert repr(Linger(seconds)) == "Linger(seconds=2)"
    assert type(Linger(seconds).seconds) is int


def test_linger_of_nothing_is_called_abort() -> None:
    with pytest.raises(ValueError, match=r"Abort\(\)"):
        Linger(0)


@pytest.mark.parametrize("bad", [127 + 1, 1000])
def test_keepalive_probes_fit_what_the_kernel_takes(bad: int) -> None:
    with pytest.raises(ValueError, match="1 to 127"):
        KeepAlive(count=bad)


@pytest.mark.parametrize(
    "bad", [None, "abort", Abort, Graceful, 0, True, KeepAlive(), Policy()], ids=repr
)
def test_close_takes_an_instance_of_a_close_mode(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"Policy\(close\).*Graceful\(\)"):
        Policy(close=bad)


def test_close_mode_without_a_meaning_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Policy\(close\)"):
        Policy(close=Graceful.__mro__[1]())


@pytest.mark.parametrize("bad", ["", "Close", "abort", "close ", None, True, 0, [], b"close"])
def test_on_loss_takes_one_of_three_words(bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"Policy\(on_loss\).*release"):
        Policy(on_loss=bad)


@pytest.mark.parametrize("bad", [KeepAlive, 60, True, (60, 10, 3), {}], ids=repr)
def test_keepalive_takes_a_keepalive(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"Policy\(keepalive\).*KeepAlive"):
        Policy(keepalive=bad)


@pytest.mark.parametrize("bad", [Abort(), "abort", Policy, {}, 0, False], ids=repr)
def test_policy_of_the_wrong_type_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"safesock\.Policy"):
        SafeSocket(policy=bad)
    with pytest.raises(TypeError, match=r"safesock\.Policy"):
        safesock.create_connection(("127.0.0.1", 9), policy=bad)


def test_the_defaults_are_those_of_the_contract() -> None:
    assert Drain() == Drain(timeout=5.0)
    assert Linger() == Linger(seconds=2)
    assert KeepAlive() == KeepAlive(idle=60, interval=10, count=3)
    assert Policy() == Policy(
        close=Graceful(),
        on_loss="close",
        watch=True,
        grace=1.0,
        reuse_address=None,
        keepalive=None,
        user_timeout=None,
        nodelay=None,
    )
    with SafeSocket() as sock:
        assert sock.policy == Policy()


@each_value
def test_value_is_frozen(value: Any) -> None:
    for name in [*value._names, "anything"]:
        before = repr(value)
        with pytest.raises(AttributeError, match="never changes"):
            setattr(value, name, 1)
        with pytest.raises(AttributeError, match="never changes"):
            delattr(value, name)
        assert repr(value) == before


@each_value
def test_repr_is_how_it_is_written(value: Any) -> None:
    again = eval(repr(value), vars(safesock))
    assert type(again) is type(value)
    assert again == value
    assert repr(again) == repr(value)


def test_repr_is_in_the_order_of_the_parameters() -> None:
    assert repr(KeepAlive(1, 2, 3)) == "KeepAlive(idle=1, interval=2, count=3)"
    assert repr(Policy(close=Drain(1.5), user_timeout=2)) == (
        "Policy(close=Drain(timeout=1.5), on_loss='close', watch=True, grace=1.0, "
        "reuse_address=None, keepalive=None, user_timeout=2, nodelay=None)"
    )


def test_a_subclass_has_each_field_once() -> None:
    class Patient(Drain):
        pass

    assert repr(Patient(9)) == "Patient(timeout=9)"
    assert copy.copy(Patient(9)) == Patient(9)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@each_value
def test_value_is_pickled_as_itself(value: Any, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(value, protocol))
    assert type(again) is type(value)
    assert again == value
    assert repr(again) == repr(value)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@each_value
def test_value_is_copied_as_itself(value: Any, duplicate: Callable[[Any], Any]) -> None:
    assert duplicate(value) == value
    assert repr(duplicate(value)) == repr(value)


def test_pickle_with_a_bad_value_is_refused_when_it_is_loaded() -> None:
    pickled = pickle.dumps(Linger(3), 2)
    assert pickled.count(b"K\x03") == 1  # BININT1 3
    with pytest.raises(ValueError, match="Abort"):
        pickle.loads(pickled.replace(b"K\x03", b"K\x00"))


@each_value
def test_value_equals_its_like_and_nothing_else(value: Any) -> None:
    same = eval(repr(value), vars(safesock))
    assert value == same
    assert hash(value) == hash(same)
    assert [other for other in VALUES if other == value] == [value]
    assert len({*VALUES, same}) == len(VALUES)
    assert value != value._values()


def test_each_field_of_a_policy_makes_a_difference() -> None:
    changed = [
        Policy(close=Abort()),
        Policy(on_loss="keep"),
        Policy(watch=False),
        Policy(grace=2),
        Policy(reuse_address=False),
        Policy(keepalive=KeepAlive()),
        Policy(user_timeout=1),
        Policy(nodelay=False),
    ]
    assert len({Policy(), *changed}) == len(changed) + 1
    assert len(changed) == len(Policy._names)


def test_modes_without_choices_take_none() -> None:
    for mode in (Graceful, Abort):
        make: Any = mode
        with pytest.raises(TypeError):
            make(1)


def test_modes_with_the_same_number_differ() -> None:
    assert Drain(2) != Linger(2)
