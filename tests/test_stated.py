"""Rules that marked kernels state themselves: what a line says, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from perfmodel.errors import TraceError
from perfmodel.graph import Graph, Op
from perfmodel.trace import Argument, Program, trace
from perfmodel.trace.stated import stated_rule

B, S, D, K, E = 2, 12, 5, 3, 4
X, CHOSEN, ROWS = (B, S, D), (B, S, K), (B, S * K, D)
LINE = f"batch seq embed, batch seq k -> batch (experts={E} row) embed; whole: experts k; tied: row=seq"


def test_a_line_is_read_into_factors() -> None:
    found = stated_rule(LINE, (X, CHOSEN), (ROWS,), "here")
    rule = found.rule
    batch, seq, embed, k = (rule.operands[0][0], rule.operands[0][1], rule.operands[0][2], rule.operands[1][2])
    assert [rule.sizes[i] for (i,) in (batch, seq, embed, k)] == [B, S, D, K]
    assert rule.operands[1][:2] == (batch, seq)
    assert (rule.results[0][0], rule.results[0][2]) == (batch, embed)
    experts, row = rule.results[0][1]
    assert (rule.sizes[experts], rule.sizes[row]) == (E, S * K // E)
    assert set(rule.blocked) == {experts, *k}
    assert found.tied == ((row, *seq),)
    assert found.summed == ((),)


def test_a_size_may_follow_from_another_value() -> None:
    found = stated_rule("a (b c) -> b a; summed: c", ((2, 12),), ((3, 2),), "here")
    c = found.rule.operands[0][1][1]
    assert found.rule.sizes[c] == 4
    assert found.summed == ((c,),)


def test_results_that_have_a_factor_are_not_summed_over_it() -> None:
    found = stated_rule("a b -> a b, a, 1 a; summed: b", ((2, 3),), ((2, 3), (2,), (1, 2)), "here")
    ((b,),) = (found.rule.operands[0][1],)
    assert found.summed == ((), (b,), (b,))
    assert found.rule.results[2][0] == ()


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("batch seq embed -> batch seq embed", "got 2 operands and 1 results, expected as many"),
        ("batch seq embed, batch seq k", "got 2 operands and 1 results, expected as many"),
        ("a b, a b c -> a d c", "got 2 dims, expected 3 for a value of shape (2, 12, 5)"),
        ("a b c, a b d -> a (e f) c", "got no sizes for e and f, expected all but one known, as in experts=8"),
        ("a b c, a b d -> a (e=5 f) c", "got (e f) = 5 for a dim of size 36, expected sizes that fit"),
        ("a b c, a b d -> a b c", "got (b) = 12 for a dim of size 36, expected sizes that fit"),
        ("a b c, a b c -> a d c", "got (c) = 5 for a dim of size 3, expected sizes that fit"),
        ("a b=7 c, a b d -> a e c", "got (b) = 7 for a dim of size 12, expected sizes that fit"),
        ("a b=7 c, a b=12 d -> a e c", "got b of size 7 and of size 12, expected one size for each factor"),
        ("a b *, a b d -> a e c", "got '*', expected the name of a factor"),
        ("a (b c, a b d -> a e c", "got '(' in 'a (b c', expected brackets in pairs around a dim"),
        ("a b c, a b d -> a e) c", "got ')' in 'a e) c', expected brackets in pairs around a dim"),
        ("a ((b) c), a b d -> a e c", "got '( )' in 'a ((b) c)', expected brackets in pairs around a dim"),
        ("a (n=0 b) c, a b d -> a e c", "got (n b) = 0 for a dim of size 12, expected sizes that fit"),
        ("a b c, a b d -> a e c; held: a", "got 'held: a', expected one of whole, summed, tied"),
        ("a b c, a b d -> a e c; whole: z", "got 'z', expected factors of the dims: a, b, c, d, e"),
        ("a b c, a b d -> a e c; tied: e", "got 'e', expected factors of the dims"),
    ],
)
def test_a_line_that_does_not_fit_is_told_by_kernel(line: str, got: str) -> None:
    with pytest.raises(TraceError) as info:
        stated_rule(line, (X, CHOSEN), (ROWS,), "model.py:7: perfmodel.mine")
    message = str(info.value)
    assert message.startswith(f"model.py:7: perfmodel.mine: rule {line!r}: {got}")
    assert message.endswith(": correct the rule")


def test_a_dim_may_have_no_elements() -> None:
    assert stated_rule("a b -> b a", ((0, 3),), ((3, 0),), "here").rule.sizes == (0, 3)


# -- kernels of one's own -----------------------------------------------------------------------------------------


def kernel_of(body: Callable[..., Any], rule: str) -> tuple[Graph, Op]:
    """The graph of one marked kernel on named arguments, and its op."""

    def marked(x: Any, w: Any) -> Any:
        def stating(x: Any, w: Any, *, rule: str) -> Any:
            return body(x, w)

        return lax.composite(stating, name="perfmodel.mine")(x, w, rule=rule)

    arguments = tuple(
        Argument(name=name, role="other", tree=jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
        for name, shape, axes in (("x", (B, S, D), ("batch", "seq", "embed")), ("w", (D, K), ("embed", "mlp")))
    )
    graph = trace(Program(name="own", fn=marked, arguments=arguments))
    ((_, op),) = graph.walk()
    return graph, op


def test_a_kernel_is_sharded_as_it_states_whatever_it_does_inside() -> None:
    graph, op = kernel_of(lambda x, w: jnp.sort(x, axis=1) @ w, "b s d, d k -> b s k; whole: s; summed: d")

    def names(indices: tuple[int, ...]) -> list[str | None]:
        return [graph.factors[op.local[i]].name for i in indices]

    assert op.kind == "perfmodel.mine"
    assert names(op.blocked) == ["seq"]
    assert names(op.summed[0]) == ["embed"]
    assert [names(dim) for dim in op.result_dims[0]] == [["batch"], ["seq"], ["mlp"]]
    work = {w.engine: w for w in op.work}
    assert work["tensor"].flops == 2.0 * B * S * D * K
    assert {*names(work["tensor"].over)} == {"batch", "embed", "mlp"}


def test_a_kernel_that_states_nothing_is_ruled_by_its_body() -> None:
    def marked(x: Any) -> Any:
        return lax.composite(lambda x: jnp.sum(x, axis=1), name="perfmodel.mine")(x)

    x = jax.ShapeDtypeStruct((B, S), jnp.float32)
    argument = Argument(name="x", role="other", tree=x, axes=("batch", "seq"))
    graph = trace(Program(name="own", fn=marked, arguments=(argument,)))
    ((_, op),) = graph.walk()
    assert [graph.factors[op.local[i]].name for i in op.summed[0]] == ["seq"]


def test_a_tied_index_lies_where_its_leader_lies() -> None:
    _, op = kernel_of(lambda x, w: x[:, ::2] @ w, "b s d, d k -> b half k; whole: d; tied: half=s")
    ((follower, leader),) = op.tied
    assert op.operand_dims[0][1] == (leader,)
    assert op.result_dims[0][1] == (follower,)
    assert follower not in op.work[0].over
