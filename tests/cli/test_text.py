"""What may be printed, and quantities with units."""

from datetime import UTC, datetime

import pytest

from bedsit.cli.table import Column, field, layout, layout_record
from bedsit.cli.text import (
    format_age,
    format_duration,
    format_rate,
    format_share,
    format_size,
    measure_width,
    neutralise,
    parse_count,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    parse_span,
    parse_whole,
)
from bedsit.ipc.errors import BedsitError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümlaut, 漢字", "plain, ümlaut, 漢字"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("line\u2028separator", "line\\u2028separator"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_could_steer_a_terminal_becomes_visible(text: str, shown: str) -> None:
    """Control, invisible and direction-changing characters are shown as escapes; readable text stays."""
    assert neutralise(text) == shown
    assert neutralise(text).isprintable()


def test_a_kept_character_stays() -> None:
    """A log line may hold a tab where no column depends on it."""
    assert neutralise("a\tb\x1b", keep="\t") == "a\tb\\x1b"


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 << 20), ("2GiB", 2 << 30), ("1.5 GiB", 3 << 29), ("1MB", 10**6), ("7B", 7)]
)
def test_sizes_with_units_are_read(text: str, size: int) -> None:
    """Binary and decimal units are told apart."""
    assert parse_size(text) == size


#: Numbers to Python, or to nobody: not one of them is one on the command line.
GARBAGE = ["", " ", "nan", "inf", "-1", "+1", "1e400", "1e3", "0x10", "1_000", "٣", "１", "²", "½", "1,5", "1.5.2", "."]  # noqa: RUF001


@pytest.mark.parametrize(
    "text", ["512", "", "MiB", "-1MiB", "1XB", "nanMiB", "٣MiB", "9" * 400 + "GiB", "9999999999GiB"]
)
def test_sizes_without_a_unit_are_refused(text: str) -> None:
    """A bare number could mean anything."""
    with pytest.raises(BedsitError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("0010", 10), (" 7 ", 7), ("999999999999999", 999999999999999)])
def test_counts_are_read(text: str, count: int) -> None:
    """Whole numbers from 1."""
    assert parse_count(text) == count


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("000", 0), (" 3 ", 3)])
def test_whole_numbers_are_read(text: str, count: int) -> None:
    """None is one of them."""
    assert parse_whole(text) == count


@pytest.mark.parametrize("text", [*GARBAGE, "1.0", "0s", "9" * 400])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    """The same things as for a count, but for none."""
    with pytest.raises(BedsitError, match="is not a whole number"):
        parse_whole(text)


@pytest.mark.parametrize("text", [*GARBAGE, "0", "5", "5 minutes", "5M", "5d", "٣s", "nans", "infs", "9" * 400 + "s"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    """A bare number could mean anything."""
    with pytest.raises(BedsitError, match="is not a duration"):
        parse_span(text)


@pytest.mark.parametrize("text", ["0s", "0.0m", "0ms"])
def test_no_time_at_all_is_no_span(text: str) -> None:
    """It would be taken for no limit where somebody wanted the tightest."""
    with pytest.raises(BedsitError, match="is no time at all"):
        parse_span(text)
    assert parse_span("1ms") == 0.001


@pytest.mark.parametrize("text", [*GARBAGE, "0", "1.0", "9" * 400])
def test_what_is_no_count_is_refused(text: str) -> None:
    """Also what no frame could carry."""
    with pytest.raises(BedsitError, match="is not a count"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "share"), [("0.25", 0.25), ("25%", 0.25), ("12.5 %", 0.125), ("0", 0), ("0%", 0), ("1", 1), ("100%", 1)]
)
def test_parts_of_the_whole_are_read(text: str, share: float) -> None:
    """As a number up to 1 or in hundredths."""
    assert parse_share(text) == share
    assert parse_share(format_share(share)) == share


@pytest.mark.parametrize("text", [*GARBAGE, "25", "1.01", "101%", "%", "25%%", "-5%", "9" * 400])
def test_what_is_no_part_of_the_whole_is_refused(text: str) -> None:
    """A bare 25 could only be meant as hundredths, and says so."""
    with pytest.raises(BedsitError, match="is not a part of the whole") as refused:
        parse_share(text)
    assert "25%" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "per_s", "shown"),
    [
        ("100", 100, "100/s"),
        ("100/s", 100, "100/s"),
        ("600/m", 10, "10/s"),
        ("30 / m", 0.5, "30/m"),
        ("20/m", 1 / 3, "20/m"),
        ("90/h", 0.025, "1.5/m"),
        ("1/h", 1 / 3600, "1/h"),
        ("0.5", 0.5, "30/m"),
        ("1000000", 1e6, "1000000/s"),
        ("2.5/s", 2.5, "2.5/s"),
    ],
)
def test_rates_are_read_and_written(text: str, per_s: float, shown: str) -> None:
    """A second where no unit is said; shown in the unit in which there is at least one."""
    assert parse_rate(text) == per_s
    assert format_rate(per_s) == shown


@pytest.mark.parametrize("text", [*GARBAGE, "0", "0/s", "0.0", "/s", "100/", "100/ms", "100/d", "5s", "max", "9" * 400])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """None at all is no rate either: a tenant that nobody may ask is stopped."""
    with pytest.raises(BedsitError, match="is not a rate"):
        parse_rate(text)


def test_durations_are_read_and_written() -> None:
    """Milliseconds to days."""
    assert [parse_duration(t) for t in ("500ms", "30s", "2m", "1h")] == [0.5, 30, 120, 3600]
    assert [format_duration(s) for s in (0.003, 1.5, 123, 18060, 187200)] == [
        "3 ms",
        "1.5 s",
        "2 m 3 s",
        "5 h 1 m",
        "2 d 4 h",
    ]
    for text in ("30", "٣s", "9" * 400 + "s"):
        with pytest.raises(BedsitError, match="is not a duration"):
            parse_duration(text)


def test_sizes_and_ages_are_written() -> None:
    """What the daemon does not know is a dash."""
    assert [format_size(n) for n in (512, 512 << 20, 3 << 29, None)] == ["512 B", "512 MiB", "1.5 GiB", "-"]
    now = datetime(2026, 1, 2, 0, 0, 0, tzinfo=UTC)
    assert format_age("2026-01-01T22:00:00Z", now) == "2 h 0 m"
    assert format_age(None, now) == format_age("yesterday", now) == "-"


COLUMNS = (field("NAME", "name"), field("SIZE MiB", "size", right=True), Column("TEXT", lambda row: row["text"]))
ROWS = ({"name": "a", "size": 5, "text": "x\ty\x1b[2J"}, {"name": "long-name", "size": 1234, "text": None})


def test_a_table_for_programs_is_separated_by_tabs_and_whole() -> None:
    """One header line, one line per row, no cell can break out of its column."""
    lines = layout(ROWS, COLUMNS, width=None, colour=False)
    assert lines == ["NAME\tSIZE MiB\tTEXT", "a\t5\tx\\ty\\x1b[2J", "long-name\t1234\t-"]


def test_a_table_for_people_is_aligned_and_cut_to_the_terminal() -> None:
    """Text to the left, numbers to the right, the last column cut, nothing drawn."""
    lines = layout(({"name": "a", "size": 5, "text": "w" * 99}, ROWS[1]), COLUMNS, width=40, colour=False)
    assert lines[0] == "NAME       SIZE MiB  TEXT"
    assert lines[1].startswith("a                 5  www")
    assert lines[1].endswith("…")
    assert max(map(measure_width, lines)) <= 40


def test_colour_touches_state_words_only() -> None:
    """The word stays readable without it."""
    states = (Column("STATE", lambda row: row["state"]), Column("N", lambda row: row["n"]))
    lines = layout(({"state": "failed", "n": 1},), states, width=80, colour=True)
    assert lines == ["STATE   N", "\x1b[31mfailed\x1b[0m  1"]


def test_wide_characters_are_counted_as_wide() -> None:
    """Columns stay aligned after text in two-column characters."""
    assert [measure_width(t) for t in ("abc", "漢字", "e\u0301")] == [3, 4, 1]


def test_a_record_is_a_line_per_field() -> None:
    """Aligned for people, tab-separated for programs."""
    fields = [("name", "vision"), ("slot", None), ("on", True)]
    assert layout_record(fields, aligned=False, colour=False) == ["name\tvision", "slot\t-", "on\tyes"]
    assert layout_record(fields, aligned=True, colour=False) == ["name  vision", "slot  -", "on    yes"]
