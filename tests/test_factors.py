"""Unification of index ranges."""

import pytest

from perfmodel.errors import AxisNameError
from perfmodel.graph import Factor
from perfmodel.trace.factors import FactorSpace


def test_equal_ranges_merge_and_keep_the_name() -> None:
    space = FactorSpace()
    named, plain = space.new(8, "heads", "wq.1"), space.new(8)
    assert space.unify([plain], [named])
    space.hand_down_names()
    (leaf,) = space.leaves([plain])
    assert space.factor(leaf) == Factor(size=space.size(leaf), name="heads", origin="wq.1")


def test_a_reshape_splits_the_larger_range_major_to_minor() -> None:
    space = FactorSpace()
    whole, major, minor = space.new(48), space.new(6), space.new(8)
    assert space.unify([whole], [major, minor])
    assert space.leaves([whole]) == [*space.leaves([major]), *space.leaves([minor])]
    assert [space.size(leaf) for leaf in space.leaves([whole])] == [6, 8]


def test_ranges_split_at_every_cut_of_both_sides() -> None:
    space = FactorSpace()
    left, right = [space.new(4), space.new(6)], [space.new(12), space.new(2)]
    assert space.unify(left, right)
    assert [space.size(leaf) for leaf in space.leaves(left)] == [4, 3, 2]
    assert space.leaves(left) == space.leaves(right)


def test_ranges_that_do_not_nest_stay_apart() -> None:
    space = FactorSpace()
    left, right = [space.new(4), space.new(9)], [space.new(6), space.new(6)]
    assert not space.unify(left, right)
    assert [space.size(leaf) for leaf in space.leaves(left)] == [4, 9]


def test_products_that_differ_stay_apart() -> None:
    space = FactorSpace()
    assert not space.unify([space.new(4)], [space.new(5)])


def test_size_one_vanishes() -> None:
    space = FactorSpace()
    assert space.leaves([space.new(1), space.new(3)]) != []
    assert len(space.leaves([space.new(1), space.new(3)])) == 1


def test_a_range_unified_with_itself_twice_in_one_dim() -> None:
    space = FactorSpace()
    x = space.new(6)
    y = space.new(36)
    assert space.unify([y], [x, x])
    major, minor = space.leaves([y])
    assert major == minor == space.leaves([x])[0]


def test_the_name_of_a_split_range_goes_to_its_major_part() -> None:
    space = FactorSpace()
    whole = space.new(48, "heads", "w.0")
    parts = [space.new(6), space.new(8)]
    space.unify([whole], parts)
    space.hand_down_names()
    assert [space.factor(leaf).name for leaf in space.leaves([whole])] == ["heads", "heads.1"]


def test_a_part_with_a_name_of_its_own_keeps_it() -> None:
    space = FactorSpace()
    whole = space.new(48, "heads", "w.0")
    parts = [space.new(6, "kv_heads", "k.0"), space.new(8)]
    space.unify([whole], parts)
    space.hand_down_names()
    assert [space.factor(leaf).name for leaf in space.leaves([whole])] == ["kv_heads", "heads.1"]


def test_two_names_on_one_index_name_both_origins() -> None:
    space = FactorSpace()
    left, right = space.new(8, "embed", "w.0"), space.new(8, "mlp", "x.1")
    with pytest.raises(AxisNameError, match=r"'embed' \(from w dim 0\) and 'mlp' \(from x dim 1\)"):
        space.unify([left], [right])


def test_a_range_comes_from_the_first_dim_and_parts_are_numbered() -> None:
    space = FactorSpace()
    whole, other = space.new(48, origin="w.0"), space.new(6, origin="k.1")
    space.unify([whole], [other, space.new(8)])
    space.hand_down_names()
    assert [space.factor(leaf).origin for leaf in space.leaves([whole])] == ["w.0/0", "w.0/1"]


def test_what_meets_a_bound_range_is_bound_too() -> None:
    space = FactorSpace()
    whole, ranks = space.new(8), space.new(4, bound=("tp",))
    assert space.unify([whole], [ranks, space.new(2)])
    assert [space.factor(leaf).bound for leaf in space.leaves([whole])] == [("tp",), ()]


@pytest.mark.parametrize(
    "parts", [[(4, ("dp",)), (2, ())], [(2, ("dp",)), (4, ())], [(2, ()), (4, ())], [(8, ("tp",))]]
)
def test_a_bound_range_neither_splits_nor_meets_another_binding(parts: list[tuple[int, tuple[str, ...]]]) -> None:
    space = FactorSpace()
    bound = [space.new(4, bound=("tp",)), space.new(2)]
    assert not space.unify(bound, [space.new(size, bound=axes) for size, axes in parts])
    assert [space.size(leaf) for leaf in space.leaves(bound)] == [4, 2]


def test_names_of_a_bound_range_may_differ() -> None:
    space = FactorSpace()
    batch, experts = space.new(4, "batch", "x.0"), space.new(4, "experts", "w.0")
    for named in (batch, experts):
        assert space.unify([named], [space.new(4, bound=("ep",))])
    assert space.unify([batch], [experts])
    space.hand_down_names()
    assert [space.factor(leaf).name for leaf in space.leaves([experts])] == ["batch"]


def test_the_major_part_of_a_named_range_knows_the_size_of_the_whole() -> None:
    space = FactorSpace()
    whole = space.new(12, "batch", "x.0")
    space.unify([whole], [space.new(3), space.new(4)])
    space.hand_down_names()
    major, minor = (space.factor(leaf) for leaf in space.leaves([whole]))
    assert (major.size, major.whole, major.named_size) == (3, 12, 12)
    assert (minor.size, minor.whole, minor.named_size) == (4, None, 4)
