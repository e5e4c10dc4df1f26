"""What numbers look like when printed, and what units mean."""

import math

import pytest

from perfmodel.units import DIMENSIONS, format_bytes, format_count, format_seconds, read_bytes, to_si

KIB = 1024.0


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [
        (0.0, "0 s"),
        (2.414, "2.41 s"),
        (31.04e-3, "31.0 ms"),
        (12.46e-6, "12.5 us"),
        (7.25e-9, "7.25 ns"),
        (1e-15, "1e-06 ns"),
        (86_400.0, "86400 s"),
        (-1.5, "-1.50 s"),
        (-12.46e-6, "-12.5 us"),
    ],
)
def test_seconds_are_printed_with_three_digits_and_a_fitting_unit(seconds: float, printed: str) -> None:
    assert format_seconds(seconds) == printed


@pytest.mark.parametrize(
    ("size", "printed"),
    [
        (0.0, "0 B"),
        (1023.0, "1023 B"),
        (KIB, "1.00 KiB"),
        (1023 * KIB, "1023 KiB"),
        (23.44 * KIB**3, "23.4 GiB"),
        (-3 * KIB**3, "-3.00 GiB"),
        (5000 * KIB**4, "5000 TiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(size: float, printed: str) -> None:
    assert format_bytes(size) == printed


@pytest.mark.parametrize(
    ("count", "printed"),
    [
        (0.0, "0 FLOP"),
        (0.0005, "0.0005 FLOP"),
        (512.0, "512 FLOP"),
        (70.64e9, "70.6 GFLOP"),
        (4.934e15, "4.93 PFLOP"),
        (-5e9, "-5.00 GFLOP"),
        (1e22, "10000 EFLOP"),
    ],
)
def test_counts_are_printed_with_decimal_prefixes(count: float, printed: str) -> None:
    assert format_count(count, "FLOP") == printed


def test_a_count_without_unit_ends_in_its_prefix_or_in_a_digit() -> None:
    assert [format_count(count) for count in (12.0, 12e3)] == ["12", "12.0 k"]


@pytest.mark.parametrize("larger", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("below", [0.9996, 0.99999, 1 - 1e-12])
def test_a_number_that_rounds_up_to_the_next_unit_is_printed_in_it(larger: float, below: float) -> None:
    assert format_seconds(below * larger) == format_seconds(larger)
    assert format_count(below / larger * 1e3) == format_count(1e3 / larger)


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_binary_units_change_where_1024_would_be_printed(power: int) -> None:
    assert format_bytes(1023.6 * KIB ** (power - 1)) == format_bytes(KIB**power)
    assert format_bytes(1023.4 * KIB ** (power - 1)).startswith("1023 ")


@pytest.mark.parametrize(("number", "printed"), [(9.996, "10.0 s"), (9.994, "9.99 s"), (99.96, "100 s")])
def test_rounding_up_does_not_add_a_digit(number: float, printed: str) -> None:
    assert format_seconds(number) == printed


def test_what_is_not_finite_is_printed_as_such() -> None:
    assert format_seconds(math.inf) == "inf s"
    assert format_bytes(math.inf) == "inf B"
    assert format_count(-math.inf, "FLOP") == "-inf FLOP"
    assert format_seconds(math.nan) == "nan s"


@pytest.mark.parametrize(
    ("value", "unit", "dimension", "si"),
    [
        (667.0, "TFLOP/s", "rate of FLOPs", 667e12),
        (200.0, "Gbit/s", "bandwidth", 25e9),
        (96.0, "GiB", "size", 96 * KIB**3),
        (15.0, "us", "time", 15 / 1e6),
    ],
)
def test_units_of_spec_files_become_si(value: float, unit: str, dimension: str, si: float) -> None:
    assert to_si(value, unit, dimension) == pytest.approx(si, rel=1e-15)


def test_every_dimension_has_an_si_unit_and_no_unit_has_two_meanings() -> None:
    assert all(1.0 in units.values() for units in DIMENSIONS.values())
    names = [unit for units in DIMENSIONS.values() for unit in units]
    assert len(names) == len(set(names))


def test_a_unit_of_another_dimension_is_refused() -> None:
    with pytest.raises(KeyError):
        to_si(1.0, "GB", "bandwidth")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1MiB", KIB**2),
        ("1.5 GB", 1.5e9),
        ("4096", 4096.0),
        ("16kB", 16e3),
        ("8 b", 8.0),
        ("1e6", 1e6),
        (" 2 mib ", 2 * KIB**2),
    ],
)
def test_a_size_is_read_with_its_unit_or_in_bytes(text: str, size: float) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1 barrel", "1 GB/s", "nan", "inf", "1e999", ".", "1.2.3", "1 GiB 2"]
)
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"got '.*', expected bytes such as 4096 or 1MiB, in B, kB, MB, GB, KiB, MiB, GiB"
    ):
        read_bytes(text)
