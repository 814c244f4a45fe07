"""The command that measures what safesock costs: its arguments, what it writes, and that the page
shows the results that are kept. What is measured is asserted by the benchmarks themselves."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import alone, charts, herd, page
from benchmarks.report import Compared, Row, compared
from benchmarks.results import Machine, Results

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "cost.md"

QUICKER = Row(
    "a call", 0.5, 1.0, "x", against="theirs", spread=0.01, ours=1, theirs=2, raw_unit="s"
)
SLOWER = Row("calls per second", 0.6, 0.8, "x", at_least=True, against="theirs")
# What the design asks for: what, to what, the bar. N: how many it was is the run's affair.
BARS = [
    ("send+recv of 64 bytes on a socketpair, CPU", "socket.socket", (1.05, 1.08)),
    ("plain send+recv of 64 bytes under enforce, CPU", "socket.socket", (1.01,)),
    ("round trip of 64 bytes over loopback", "socket.socket", (1.01,)),
    ("round trips of 64 bytes", "asyncio", (0.70,)),
    ("round trips of 64 bytes", "anyio", (0.95,)),
    ("round trips of 64 bytes", "trio", (1.0,)),
    ("readline", "asyncio", (0.60,)),
    ("received, 64 KiB at a time", "asyncio", (0.75,)),
    ("received, 64 KiB at a time", "anyio", (1.0,)),
    ("sent, 64 KiB at a time", "asyncio", (0.75,)),
    ("sent, 64 KiB at a time", "anyio", (1.0,)),
    ("last of N out of CLOSE_WAIT after grace", "", (1.0,)),
    ("CPU of N idle connections", "", (0.1,)),
    ("memory per idle SafeSocket over socket.socket", "", (600,)),
    ("reconnects per second on one fixed port", "the bare loop of system calls", (0.80,)),
    ("import safesock over import socket", "", (15,)),
]
# And what a user would take instead.
BESIDE = [
    ("plain send+recv of 64 bytes beside a thread that sleeps, CPU", "socket.socket"),
    ("round trips of 64 bytes, later", "asyncio on uvloop"),
    ("readline, later", "asyncio on uvloop"),
    ("reconnects per second from any port, Connector", "Twisted's ClientService"),
    ("reconnects per second from one fixed port, Connector", "Twisted's ClientService"),
    ("asking whether a connection was dropped, CPU", "urllib3's way"),
    ("a request to a pool of urllib3's, CPU", "urllib3's own"),
]


def results(*rows: Row) -> Results:
    machine = Machine("Linux 6.1, x86_64", "a processor", 2, "CPython 3.11.7")
    found = Results(machine, "0.1.0", "2026-01-02T03:04:05+00:00", quick=False)
    found.rows["hot_path"] = list(rows)
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "kept.json"
    file.write_text(results(QUICKER, SLOWER).to_json(), encoding="utf-8")
    return file


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    return file


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--only"], "expected at least one argument"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--json", "{folder}/no/such.json"], "--json {folder}/no/such.json: No such file or"),
        (["--json", "{folder}"], "--json takes a file"),
        (["--json", "{kept}/below.json"], "Not a directory"),
        (["--charts", "{kept}/below"], "--charts {kept}/below: Not a directory"),
        (["--page", "{folder}/none.md"], "No such file or directory"),
        (["--page", "{kept}"], "no page for the results"),
        (["--from", "{folder}/none.json"], "No such file or directory"),
        (["--page", "{marked}", "--only", "idle"], "--page takes the results of all"),
        (["--from", "{marked}"], "--from {marked}: not the results of a run"),
        (["--from", "{kept}", "--quick"], "--from measures nothing"),
        (["--from", "{kept}", "--only", "idle"], "--from measures nothing"),
        (["--from", "{kept}", "--json", "{folder}/new.json"], "--from measures nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_before_anything_is_measured(
    arguments: list[str],
    told: str,
    kept: Path,
    marked: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alone, "rows_of", lambda *_: pytest.fail("it has begun to measure"))
    names = {"folder": str(kept.parent), "kept": str(kept), "marked": str(marked)}
    with pytest.raises(SystemExit) as ended:
        command.main([word.format(**names) for word in arguments])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m benchmarks: error: ")
    assert told.format(**names) in last


@pytest.mark.parametrize("name", ["redialled", "pooled", "streams"])
def test_a_missing_package_is_told_with_what_brings_it(
    name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        command.main(["--only", name])
    assert f"{name} takes " in (said := capsys.readouterr().err)
    assert "pip install -e '.[bench]'" in said


def test_charts_without_what_draws_them_are_refused(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        command.main(["--charts", str(tmp_path)])
    assert "--charts takes matplotlib: pip install -e '.[bench]'" in capsys.readouterr().err


def test_help_names_all_there_is(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--json FILE", "--charts DIR", "--from FILE", "--strict", "exit status: 0"):
        assert word in shown
    assert all(name in shown for name in command.BENCHMARKS)


def test_every_benchmark_is_a_module_with_rows() -> None:
    for name in command.BENCHMARKS:
        assert re.search(
            r"^def rows\(quick: bool\) ->", (ROOT / f"benchmarks/{name}.py").read_text(), re.M
        )
    assert set(command._TAKES) <= set(command.BENCHMARKS)


# Measuring, by benchmarks that are none -----------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_of(name: str, quick: bool) -> Iterator[Row]:
        assert quick
        yield QUICKER
        if name == "idle":
            raise subprocess.CalledProcessError(1, name)
        yield SLOWER

    monkeypatch.setattr(alone, "rows_of", rows_of)


@pytest.mark.usefixtures("measured")
def test_a_missed_bar_is_told_and_is_an_error_where_that_is_wanted(
    tmp_path: Path, marked: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(command, "BENCHMARKS", ("imports",))
    arguments = ["--quick", "--json", str(file), "--page", str(marked)]
    assert command.main(arguments) == 0
    assert "1 of 2 bars are reached\nNOT reached, by 25.0%: calls per" in capsys.readouterr().out
    found = Results.from_json(file.read_text(encoding="utf-8"))
    assert found.rows == {"imports": [QUICKER, SLOWER]}
    assert found.quick
    assert found.machine == Machine.this()
    assert "missed by 25%" in marked.read_text(encoding="utf-8")
    assert command.main(["--strict", "--quick", "--only", "imports"]) == 1


@pytest.mark.usefixtures("measured")
def test_a_benchmark_that_fails_is_no_end_of_the_others(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "found.json"
    assert command.main(["--quick", "--only", "idle", "imports", "--json", str(file)]) == 1
    assert capsys.readouterr().err == "idle has FAILED\n"
    found = Results.from_json(file.read_text(encoding="utf-8"))
    assert found.failed == ["idle"]
    assert found.rows == {"idle": [QUICKER], "imports": [QUICKER, SLOWER]}
    assert "Without idle, which failed." in page.tables(found)


def test_a_run_that_is_interrupted_keeps_what_there_is(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_of(_name: str, _quick: bool) -> Iterator[Row]:
        yield QUICKER
        raise KeyboardInterrupt

    monkeypatch.setattr(alone, "rows_of", rows_of)
    file = tmp_path / "found.json"
    assert command.main(["--only", "idle", "imports", "--json", str(file)]) == 130
    assert capsys.readouterr().err == f"interrupted: {file} has what there is\n"
    assert Results.from_json(file.read_text(encoding="utf-8")).rows == {"idle": [QUICKER]}


@pytest.mark.parametrize(
    ("plot", "told"),
    [
        ("{folder}/none/x.svg", "--plot {folder}/none/x.svg: No such file or directory"),
        ("{folder}/x.bmp", "--plot takes a .svg or a .png: not {folder}/x.bmp"),
        ("{folder}", "--plot takes a .svg or a .png"),
    ],
)
def test_a_plot_that_cannot_be_is_told_before_the_herd_is_simulated(
    plot: str, told: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(herd, "simulate", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(SystemExit, match="2"):
        herd.main(["--quick", "--plot", plot.format(folder=tmp_path)])
    assert told.format(folder=tmp_path) in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["--table"]])
def test_a_herd_that_is_interrupted_is_no_error(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(herd, "simulate", interrupted)
    assert herd.main(arguments) == 130


def test_what_fails_in_a_process_of_its_own_is_an_error_here(capfd: Any) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        list(alone.rows_of("nothing", True))
    assert "No module named 'benchmarks.nothing'" in capfd.readouterr().err


@pytest.mark.campaign
@pytest.mark.once
def test_it_runs(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "found.json"
    names = ["imports", "pooled"]
    assert command.main(["--quick", "--only", *names, "--json", str(file)]) == 0
    found = Results.from_json(file.read_text(encoding="utf-8"))
    assert list(found.rows) == names
    assert all(found.rows.values())
    assert [str(row) for row in found.all_rows()] == capsys.readouterr().out.splitlines()[1:7]


# What is written ----------------------------------------------------------------------------------


def test_the_json_is_what_others_can_read() -> None:
    found = json.loads(results(QUICKER, SLOWER).to_json())
    assert found["format"] == 1
    assert set(found) == {"format"} | {one.name for one in dataclasses.fields(Results)}
    one, other = found["rows"]["hot_path"]
    assert (one["what"], one["against"], one["figure"], one["unit"]) == (
        "a call",
        "theirs",
        0.5,
        "x",
    )
    assert (one["spread"], one["ours"], one["theirs"], one["raw_unit"]) == (0.01, 1, 2, "s")
    assert (one["bar"], one["at_least"], one["reached"], one["missed_by"]) == (1.0, False, True, 0)
    assert (other["bar"], other["at_least"], other["reached"]) == (0.8, True, False)
    assert other["missed_by"] == 0.25


def test_the_json_is_read_as_it_was_written() -> None:
    found = results(QUICKER, SLOWER)
    assert Results.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"machine": None},
        {"machine": {"system": "Linux"}},
        {"more": 1},
        {"rows": []},
        {"rows": {"hot_path": [{"what": "a call"}]}},
        {"rows": {"hot_path": [{"what": "a call", "figure": "1", "bar": None, "unit": "x"}]}},
        {"rows": {"hot_path": [{"what": 1, "figure": 1, "bar": None, "unit": "x"}]}},
    ],
    ids=repr,
)
def test_what_is_no_json_of_results_is_refused(change: dict[str, Any]) -> None:
    found = json.loads(results(QUICKER).to_json())
    with pytest.raises(ValueError, match=r"results|no number|no text"):
        Results.from_json(json.dumps(found | change))
    with pytest.raises(ValueError, match="no results of format 1"):
        Results.from_json("[]")


def test_a_page_is_written_again_from_what_was_measured(
    kept: Path, marked: Path, capsys: Any
) -> None:
    assert command.main(["--from", str(kept), "--page", str(marked)]) == 0
    text = marked.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{page.BEGIN}\nCPython 3.11.7 on Linux 6.1")
    assert text.endswith(f"{page.END}\nafter\n")
    assert "| a call | theirs | 0.500 ± 0.010 | at most 1 | reached | 1, 2 s |" in text
    assert "| at least 0.8 | **missed by 25%** |" in text
    assert "old" not in text
    assert str(QUICKER) in capsys.readouterr().out
    assert command.main(["--from", str(kept), "--page", str(marked)]) == 0
    assert marked.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", [page.BEGIN, page.END, f"{page.END}{page.BEGIN}", ""])
def test_a_page_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no page"):
        page.with_results(text, results())


@pytest.mark.campaign
@pytest.mark.once
def test_charts_are_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install -e '.[bench]'")
    found = Results.from_json(KEPT.read_text(encoding="utf-8"))
    for folder in ("one", "other"):
        arguments = ["--from", str(KEPT), "--charts", str(tmp_path / folder / "below")]
        assert command.main(arguments) == 0
    files = sorted(path.name for path in (tmp_path / "one" / "below").iterdir())
    assert files == sorted(f"{name}.svg" for name in charts.CHARTS)
    for name in files:
        one, other = (tmp_path / each / "below" / name for each in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()
        assert (ROOT / "benchmarks" / name).exists()
    found.rows.clear()
    assert charts.draw(found, tmp_path) == []


# Figures ------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    found = Compared.of([1.0, 2.0, 30.0], [2.0, 2.0, 10.0])
    assert (found.ratio, found.ours, found.theirs) == (1.0, 2.0, 2.0)
    row = found.row("calls", "theirs", 1.5, each=1000, unit="ms")
    assert (row.figure, row.ours, row.raw_unit, row.reached) == (1.0, 2.0, "ms", True)
    rates = Compared.of([2.0, 2.0], [1.0, 1.0]).rates("calls", "theirs", 0.8, each=10)
    assert (rates.figure, rates.ours, rates.theirs, rates.reached) == (0.5, 5.0, 10.0, False)
    assert rates.missed_by == pytest.approx(0.375)


def test_both_sides_take_turns_and_the_first_round_does_not_count() -> None:
    calls = ""

    def taken(who: str) -> float:
        nonlocal calls
        calls += who
        return 1000.0 if len(calls) < 3 else {"a": 2.0, "b": 4.0}[who]

    found = compared(lambda: taken("a"), lambda: taken("b"), 4)
    assert calls == "ab" + "baab" * 2
    assert (found.ratio, found.spread, found.ours, found.theirs) == (0.5, 0, 2.0, 4.0)


# The page -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Results:
    return Results.from_json(KEPT.read_text(encoding="utf-8"))


def test_the_page_has_the_results_that_are_kept(found: Results) -> None:
    text = PAGE.read_text(encoding="utf-8")
    again = "python -m benchmarks --from benchmarks/results.json"
    again += " --charts benchmarks --page docs/cost.md"
    assert page.with_results(text, found) == text, again
    assert again in text


def counted(what: str) -> str:
    """With N for how many there were, which is less in a quick run."""
    return re.sub(r"\d[\d,]{2,}", "N", what)


@pytest.mark.parametrize(("what", "against", "bars"), BARS, ids=[" to ".join(b[:2]) for b in BARS])
def test_all_that_has_a_bar_is_measured(
    what: str, against: str, bars: tuple[float, ...], found: Results
) -> None:
    (row,) = (
        row for row in found.all_rows() if (counted(row.what), row.against) == (what, against)
    )
    assert row.bar in bars
    assert row.at_least == ("per second" in what)


@pytest.mark.parametrize(("what", "against"), BESIDE, ids=[" to ".join(b) for b in BESIDE])
def test_what_a_user_would_take_instead_is_measured(
    what: str, against: str, found: Results
) -> None:
    (row,) = (row for row in found.all_rows() if (row.what, row.against) == (what, against))
    assert row.ours is not None
    assert row.theirs is not None
    assert row.raw_unit


def test_the_page_says_of_every_missed_bar_why(found: Results) -> None:
    text = PAGE.read_text(encoding="utf-8")
    _, _, reasons = text.partition("\n## What is slower, and why\n")
    told = set(map(counted, re.findall(r"\*\*([^*]+?)\.?\*\*", reasons.partition("\n## ")[0])))
    assert {counted(row.what) for row in found.missed()} <= told
    assert not found.failed
