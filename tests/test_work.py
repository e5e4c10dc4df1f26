"""Amounts of work: monomials in the sizes that a layout chooses, added up and turned into numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.work import (
    DATA,
    ONE,
    RESIZABLE,
    SYMBOLS,
    Again,
    Evaluator,
    Identity,
    Late,
    Term,
    amount,
    by_growth,
    growth,
    plus,
    resized,
    symbols_of,
)

SIZES = dict(zip(SYMBOLS, (2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0), strict=True))
"""Primes, so that a wrong exponent shows."""

exponents = st.tuples(*(st.integers(-2, 2) for _ in SYMBOLS))
terms = st.builds(Term, st.floats(0.1, 1e12), exponents)


def value(term: Term) -> float:
    return float(Evaluator(SIZES).term(term))


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("power", [-2, -1, 1, 3])
def test_a_term_times_a_symbol_is_its_number_times_the_size(symbol: str, power: int) -> None:
    assert value(Term(5.0).times((symbol,), power)) == pytest.approx(5.0 * SIZES[symbol] ** power, rel=1e-15)


def test_times_takes_several_symbols_at_once_and_leaves_the_term_as_it_was() -> None:
    term = Term(6.0)
    assert value(term.times(("tp_kv", "tp_q"), -1)) == pytest.approx(6.0 / (SIZES["tp_kv"] * SIZES["tp_q"]), rel=1e-15)
    assert term == Term(6.0, ONE)


@given(a=terms, b=terms)
def test_the_value_of_a_product_is_the_product_of_the_values(a: Term, b: Term) -> None:
    assert value(a * b) == pytest.approx(value(a) * value(b), rel=1e-12)


@given(many=st.lists(terms, max_size=8))
def test_an_amount_is_the_sum_of_its_terms(many: list[Term]) -> None:
    total = float(Evaluator(SIZES).amount(amount(many)))
    assert total == pytest.approx(math.fsum(map(value, many)), rel=1e-12)


def test_terms_alike_in_their_exponents_are_kept_as_one() -> None:
    alike = Term(1.0).times(("dp",)), Term(2.0).times(("dp",)), Term(4.0)
    assert amount(alike) == {alike[0].exponents: 3.0, ONE: 4.0}


@pytest.mark.parametrize("name", RESIZABLE)
def test_a_resized_factor_counts_its_size_under_the_layout_instead_of_the_traced_one(name: str) -> None:
    size = {"batch": math.prod(SIZES[symbol] for symbol in (*DATA, "mb")), "microbatch": SIZES["microbatch"]}[name]
    assert value(resized(Term(6.0 * 10), name, 6)) == pytest.approx(10 * size, rel=1e-15)


def test_a_ranks_share_of_the_batch_depends_on_no_axis_that_the_batch_is_spread_over() -> None:
    share = resized(Term(7.0), "batch", 1).times(DATA, -1)
    assert share == Term(7.0).times(("mb",))


@pytest.mark.parametrize("name", ["embed", None])
def test_other_factors_keep_their_traced_size(name: str | None) -> None:
    assert resized(Term(60.0), name, 6) == Term(60.0)


@given(
    many=st.lists(terms, min_size=1, max_size=6),
    columns=st.lists(st.tuples(*(st.floats(1.0, 4096.0) for _ in SYMBOLS)), min_size=1, max_size=20),
)
def test_an_array_of_sizes_gives_what_each_of_them_gives_to_the_last_bit(
    many: list[Term], columns: list[tuple[float, ...]]
) -> None:
    together = Evaluator(dict(zip(SYMBOLS, np.array(columns).T, strict=True)))
    apart = [Evaluator(dict(zip(SYMBOLS, column, strict=True))) for column in columns]
    total = amount(many)
    expected = [float(each.amount(total)) for each in apart]
    assert np.array_equal(np.broadcast_to(together.amount(total), len(columns)), expected)
    for term in many:
        expected = [float(each.term(term)) for each in apart]
        assert np.array_equal(np.broadcast_to(together.term(term), len(columns)), expected)


@given(many=st.lists(terms, max_size=8))
def test_terms_of_one_growth_are_an_amount_apart(many: list[Term]) -> None:
    total = amount(many)
    parts = by_growth(total)
    for key, part in parts.items():
        assert {growth(exponents) for exponents in part} == {key}
    together: dict[tuple[int, ...], float] = {}
    for part in parts.values():
        together = plus(together, part)
    assert together == total


def test_growth_tells_what_a_larger_batch_makes_larger() -> None:
    weights, activations = Term(1.0).times(("dp",), -1), Term(1.0).times(("mb", "cp"))
    assert [growth(term.exponents) for term in (weights, activations)] == [(False, False), (True, False)]


def test_symbols_are_those_with_an_exponent() -> None:
    assert symbols_of([amount([Term(1.0).times(("pp",)), Term(2.0)]), amount([Term(1.0).times(("cp",), -1)])]) == [
        "cp",
        "pp",
    ]


# -- what is worked out when asked for ----------------------------------------------------------------------------


def test_late_numbers_are_worked_out_by_name_and_only_then() -> None:
    asked: list[str] = []

    def number(name: str) -> float:
        asked.append(name)
        return float(len(name))

    late = Late(("a", "bb"), number)
    assert list(late) == ["a", "bb"]
    assert asked == []
    assert dict(late) == {"a": 1.0, "bb": 2.0}
    assert asked == ["a", "bb"]
    with pytest.raises(KeyError):
        late["c"]


def test_items_can_be_gone_through_again() -> None:
    items = Again(lambda: iter((1, 2)))
    assert [*items, *items] == [1, 2, 1, 2]


def test_an_identity_is_equal_only_for_the_same_thing() -> None:
    one, other = [1], [1]
    assert Identity(one) == Identity(one)
    assert Identity(one) != Identity(other)
    assert len({Identity(one), Identity(one), Identity(other)}) == 2
