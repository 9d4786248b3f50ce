"""How numbers are written for people."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.analysis.numbers import decimals, duration, listed, p_text, plain, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.4, "999"),
        (999.5, "1k"),
        (1000, "1k"),
        (2048, "2.05k"),
        (524_288, "524k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (3_451_204, "3.45M"),
        (300_000_000_000, "300B"),
        (2.5e12, "2.5T"),
        (0.00123456, "0.00123"),
    ],
)
def test_short_has_three_digits_and_a_unit(value: float, text: str) -> None:
    assert short(value) == text


@given(st.floats(1, 1e15))
def test_short_is_within_half_a_percent_of_the_number(value: float) -> None:
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    text = short(value)
    assert float(text.rstrip("kMBT")) * units.get(text[-1], 1.0) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159265, "3.142"),
        (0.00125, "0.00125"),
        (1e-8, "1e-08"),
        (0.9, "0.9"),
        (0.99975, "0.99975"),
        (0.998765, "0.99877"),
        (1.0, "1"),
        (9999.0, "9999"),
        (12_345.6, "12.3k"),
        (256, "256"),
        (524_288, "524,288"),
        (2_000_000, "2M"),
        (np.int64(2048), "2,048"),
        (np.float64(0.12345), "0.1235"),
        ("per_tensor", "per_tensor"),
        (math.inf, "infinite"),
        (math.nan, "-"),
        (None, "-"),
        (pd.NA, "-"),
    ],
)
def test_plain_shows_a_value_of_any_kind(value: object, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("width", "places"), [(0.0042, 4), (0.042, 3), (0.42, 2), (4.2, 1), (42.0, 0), (420.0, 0), (1e-9, 6), (0.0, 6)]
)
def test_decimals_show_two_digits_of_an_error(width: float, places: int) -> None:
    assert decimals(width) == places


def test_a_list_reads_as_in_a_sentence() -> None:
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.5, "1m 00s"), (200, "3m 20s"), (3599.6, "1h 00m"), (90_061, "25h 01m")],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_p_value_below_a_ten_thousandth_is_no_number() -> None:
    assert [p_text(p) for p in (0.049, 0.00234, 0.0001, 0.00009)] == [
        "p = 0.049",
        "p = 0.0023",
        "p = 0.0001",
        "p < 0.0001",
    ]
