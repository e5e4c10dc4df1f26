"""Tables of layouts: rows alike in some columns are worked out once, and every row gets its own number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.rows import DIRECT, Parts, Table, number
from perfmodel.work import SYMBOLS, Evaluator, Term, amount

values = st.sampled_from([1.0, 2.0, 3.0, 8.0, 1.5, float(DIRECT), float(2 * DIRECT)])


@given(st.lists(values, min_size=1, max_size=30).map(np.array))
def test_equal_values_get_one_number_and_each_number_has_a_row(column: Any) -> None:
    found = number(column)
    assert len(found.row_of) == len(set(column))
    assert column[found.row_of][found.of_row].tolist() == column.tolist()


def sizes(rows: int) -> dict[str, Any]:
    """Columns of small sizes; `pp` is one number, the same in every row."""
    rng = np.random.default_rng(0)
    return {symbol: rng.choice([1.0, 2.0, 3.0], rows) for symbol in SYMBOLS} | {"pp": 4.0}


@pytest.mark.parametrize("names", [("cp",), ("cp", "mb"), ("tp_kv", "tp_q", "cp"), ("cp", "pp"), SYMBOLS])
def test_what_is_worked_out_for_each_kind_is_what_each_row_gives(names: tuple[str, ...]) -> None:
    table = sizes(500)
    kinds = Table(table).kinds(names)
    term = Term(7.0).times(names).times(("cp",), -2)
    assert np.array_equal(kinds.spread(kinds.evaluate.term(term)), Evaluator(table).term(term))


def test_few_rows_are_worked_out_where_many_are_alike() -> None:
    kinds = Table(sizes(500)).kinds(("cp", "mb", "pp"))
    assert np.size(kinds.evaluate.term(Term(1.0).times(("cp", "mb", "pp")))) == 3 * 3


def test_rows_that_are_not_alike_are_left_as_they_are() -> None:
    table = {symbol: np.arange(1.0, 10.0) for symbol in SYMBOLS}
    assert Table(table).kinds(("cp",)).sizes["cp"] is table["cp"]


def test_many_kinds_take_no_more_memory_than_many_rows() -> None:
    """Of n values in each of two columns n rows are pairs, of n * n that there might be."""
    rng = np.random.default_rng(0)
    rows, values = 20_000, 9_000
    table = sizes(rows) | {name: 1.0 + rng.integers(0, values, rows) for name in ("fsdp", "mb")}
    tracemalloc.start()
    kinds = Table(table).kinds(("fsdp", "mb"))
    term = Term(7.0).times(("fsdp", "mb"))
    found = kinds.spread(kinds.evaluate.term(term))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, Evaluator(table).term(term))
    assert peak < values * values


@pytest.mark.parametrize("values", [100, 3000])
def test_rows_are_told_apart_by_two_columns_however_many_values_each_has(values: int) -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(1, values, (values, 2)).astype(float)
    drawn = pairs[rng.integers(0, values, 10 * values)]
    table = sizes(len(drawn)) | {"fsdp": drawn[:, 0], "mb": drawn[:, 1]}
    kinds = Table(table).kinds(("fsdp", "mb"))
    assert len(kinds.sizes["fsdp"]) == len(np.unique(drawn, axis=0))  # type: ignore[arg-type]
    term = Term(7.0).times(("fsdp",), 2).times(("mb",), -1)
    assert np.array_equal(kinds.spread(kinds.evaluate.term(term)), Evaluator(table).term(term))


def open_grid() -> dict[str, Any]:
    axes = np.ix_(*([1.0, 1.0, 1.0, 1.0, 2.0] for _ in ("tp_kv", "cp", "mb")))
    return dict.fromkeys(SYMBOLS, 1.0) | dict(zip(("tp_kv", "cp", "mb"), axes, strict=True))


@pytest.mark.parametrize("table", [lambda: dict.fromkeys(SYMBOLS, 2.0), open_grid])
def test_one_layout_and_an_open_grid_are_left_as_they_are(table: Callable[[], dict[str, Any]]) -> None:
    kinds = Table(table()).kinds(("tp_kv", "cp"))
    assert {name: np.shape(size) for name, size in kinds.sizes.items()} == {
        name: np.shape(size) for name, size in table().items()
    }
    assert kinds.spread(kinds.sizes["cp"]) is kinds.sizes["cp"]


def test_parts_add_up_to_the_amount_in_every_row() -> None:
    table = sizes(200)
    weights, activations = Term(3.0).times(("cp",), -1), Term(5.0).times(("mb", "tp_q"))
    parts = Parts(Table(table), {(False, False): ["cp"], (True, False): ["tp_q", "mb"]})
    found = parts.amount(amount([weights, activations]))
    assert np.array_equal(found, 3.0 / table["cp"] + 5.0 * (table["tp_q"] * table["mb"]))
