"""Random programs of einsums and their kin, random meshes and random assignments, for hypothesis.

A program is a list of steps over a growing pool of values. Each dim of a value carries a symbol; equal symbols are
the same index range, so that steps can be chosen that fit. Symbols in `NAMES` are also axis names. Functions are
smooth, since devices add in another order than the whole program does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from hypothesis import strategies as st
from jax import lax

from perfmodel.layout import Assignment, Rules, assignment
from perfmodel.trace import Argument, Program
from perfmodel.work import MESH, TP

NAMES = ("batch", "seq", "embed", "mlp", "kv_heads", "q_per_kv", "vocab", "experts")
ROLES = ("parameters", "optimizer", "gradients")
M, L = 2, 2
"""Microbatches and layers."""
LARGEST = 1024
"""Elements of a value, about."""

Dims: TypeAlias = tuple[str, ...]
Sizes: TypeAlias = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: what it does, positions in the pool of what it takes, and how exactly."""

    kind: str
    operands: tuple[int, ...]
    how: Any
    dims: Dims


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A program, a mesh whose axes divide its dims, and an assignment."""

    program: Program
    mesh: Mapping[str, int]
    assignment: Assignment
    steps: tuple[Step, ...]


# -- what steps do -----------------------------------------------------------------------------------------------------

UNARY: Mapping[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "scale": lambda x: x * 0.5,
    "negate": lambda x: -x,
    "above": lambda x: jnp.where(x > 0.3171, x, 0.1 * x),
    "float32": lambda x: x.astype(jnp.float32),
    "bfloat16": lambda x: x.astype(jnp.bfloat16),
}
BINARY: Mapping[str, Callable[[Any, Any], Any]] = {"add": jnp.add, "subtract": jnp.subtract, "multiply": jnp.multiply}


def spec(dims: Dims, sizes: Sizes, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(sizes[d] for d in dims), dtype)


def fit(x: Any, dims: Dims, target: Dims, sizes: Sizes) -> Any:
    """`x` summed over dims that `target` lacks, transposed, and broadcast over those that it lacks itself."""
    left, order = list(range(len(dims))), []
    for d in target:
        found = next((i for i in left if dims[i] == d), None)
        order.append(found)
        if found is not None:
            left.remove(found)
    kept = [i for i in range(len(dims)) if i not in left]
    x = jnp.sum(x, axis=tuple(left)).transpose([kept.index(i) for i in order if i is not None])
    x = jnp.expand_dims(x, [k for k, i in enumerate(order) if i is None])
    return jnp.broadcast_to(x, tuple(sizes[d] for d in target))


def execute(steps: Sequence[Step], pool: Sequence[Any], dims: Sequence[Dims], sizes: Sizes) -> list[Any]:
    """The pool after every step."""
    values, known = list(pool), list(dims)
    for step in steps:
        operands = [values[i] for i in step.operands]
        values.append(_apply(step, operands, [known[i] for i in step.operands], sizes))
        known.append(step.dims)
    return values


def _apply(step: Step, operands: Sequence[Any], dims: Sequence[Dims], sizes: Sizes) -> Any:
    x, how = operands[0], step.how
    if step.kind == "unary":
        return UNARY[how](x)
    if step.kind == "binary":
        return BINARY[how](x, fit(operands[1], dims[1], dims[0], sizes))
    if step.kind == "einsum":
        return jnp.einsum(how, *operands) * 0.3
    if step.kind == "rescale":  # by one number for all elements, itself a sum
        return x * jnp.sum(operands[1])
    if step.kind == "sum":
        return jnp.sum(x, axis=how)
    if step.kind == "max":
        return jnp.max(x, axis=how)
    if step.kind == "softmax":
        return jax.nn.softmax(x, axis=how)
    if step.kind == "norm":
        return x * lax.rsqrt(jnp.mean(x * x, axis=how, keepdims=True) + 1.0)
    if step.kind == "transpose":
        return x.transpose(how)
    if step.kind == "broadcast":
        return fit(x, dims[0], step.dims, sizes)
    if step.kind == "merge":  # two dims as one and back
        merged = jnp.tanh(x.reshape(*x.shape[:how], -1, *x.shape[how + 2 :]))
        return merged.reshape(x.shape)
    if step.kind == "split":
        return x.reshape(tuple(sizes[d] for d in step.dims))
    if step.kind == "roll":
        return jnp.concatenate([x, x], axis=how)[(slice(None),) * how + (slice(1, 1 + x.shape[how]),)]
    if step.kind == "part":
        return x[(slice(None),) * how[0] + (slice(*how[1:]),)]
    if step.kind == "pad":
        return jnp.pad(x, [(1, 0) if d == how else (0, 0) for d in range(x.ndim)])
    return _scan(step, operands, dims, sizes)


def _scan(step: Step, operands: Sequence[Any], dims: Sequence[Dims], sizes: Sizes) -> Any:
    steps, stacked = step.how

    def body(x: Any, w: Any) -> Any:
        *_, y = execute(steps, [x, w], [dims[0], dims[1][1:]], sizes)
        y = jnp.tanh(fit(y, steps[-1].dims, dims[0], sizes)).astype(x.dtype)
        return x + y, y

    final, each = lax.scan(body, operands[0], operands[1])
    return each if stacked else final


# -- drawing -----------------------------------------------------------------------------------------------------------


@st.composite
def _steps(draw: Any, dims: Sequence[Dims], sizes: dict[str, int], count: int, smooth: bool, scans: bool) -> Any:
    """Steps over a pool of values of such dims, and the dims of the pool after them."""
    known, steps = list(dims), []
    for _ in range(count):
        step = _step(draw, known, sizes, smooth, scans)
        steps.append(step)
        known.append(step.dims)
    return tuple(steps), known


def _step(draw: Any, known: Sequence[Dims], sizes: dict[str, int], smooth: bool, scans: bool) -> Step:
    i = len(known) - 1 - max(0, draw(st.integers(-len(known), len(known) - 1)))  # mostly the last
    dims = known[i]
    kinds = ["unary", "unary", "unary", "binary", "binary", "rescale", *["einsum"] * 5]
    if dims:
        kinds += ["sum", "softmax", "norm", "transpose", "roll", "pad", "part"]
        kinds += ["max"] * 2 if not smooth else []
    if len(dims) < 4:
        kinds += ["broadcast", "split"]
    if len(dims) > 1:
        kinds += ["merge"]
    stacked = [j for j, other in enumerate(known) if other[:1] == ("layers",) and "layers" not in dims]
    if scans and stacked:
        kinds += ["scan"] * 3
    kind = draw(st.sampled_from(kinds))
    axis = draw(st.integers(0, len(dims) - 1)) if dims else 0
    if kind == "binary":
        j = draw(st.integers(0, len(known) - 1))
        return Step(kind, (i, j), draw(st.sampled_from(sorted(BINARY))), dims)
    if kind == "rescale":
        return Step(kind, (i, draw(st.integers(0, len(known) - 1))), None, dims)
    if kind == "einsum":
        return _einsum(draw, known, i, sizes)
    if kind in ("sum", "max"):
        return Step(kind, (i,), axis, dims[:axis] + dims[axis + 1 :])
    if kind in ("softmax", "norm"):
        return Step(kind, (i,), axis, dims)
    if kind == "transpose":
        order = tuple(draw(st.permutations(range(len(dims)))))
        return Step(kind, (i,), order, tuple(dims[k] for k in order))
    if kind == "broadcast":
        wider = (*dims[:axis], draw(st.sampled_from(NAMES)), *dims[axis:])
        return Step(kind, (i,), None, wider if _elements(wider, sizes) <= LARGEST else dims)
    if kind == "merge":
        return Step(kind, (i,), min(axis, len(dims) - 2), dims)
    if kind == "split" and dims and sizes[dims[axis]] % 2 == 0 and f"{dims[axis]}/0" in sizes:
        return Step(kind, (i,), None, (*dims[:axis], f"{dims[axis]}/0", f"{dims[axis]}/1", *dims[axis + 1 :]))
    if kind == "roll":
        return Step(kind, (i,), axis, (*dims[:axis], _fresh(sizes, sizes[dims[axis]]), *dims[axis + 1 :]))
    if kind == "pad":
        return Step(kind, (i,), axis, (*dims[:axis], _fresh(sizes, sizes[dims[axis]] + 1), *dims[axis + 1 :]))
    if kind == "part":
        start, stop = sorted(draw(st.lists(st.integers(0, sizes[dims[axis]]), min_size=2, max_size=2, unique=True)))
        how = axis, start, stop, draw(st.integers(1, 2))
        return Step(kind, (i,), how, (*dims[:axis], _fresh(sizes, len(range(*how[1:]))), *dims[axis + 1 :]))
    if kind == "scan":
        j = draw(st.sampled_from(stacked))
        steps, _ = draw(_steps([dims, known[j][1:]], sizes, draw(st.integers(1, 4)), smooth, False))
        keep = draw(st.booleans()) and len(dims) < 4
        return Step(kind, (i, j), (steps, keep), ("layers", *dims) if keep else dims)
    return Step("unary", (i,), draw(st.sampled_from(sorted(UNARY))), dims)


def _elements(dims: Dims, sizes: Sizes) -> int:
    return math.prod(sizes[d] for d in dims)


def _fresh(sizes: dict[str, int], size: int) -> str:
    name = f"_{len(sizes)}"
    sizes[name] = size
    return name


def _einsum(draw: Any, known: Sequence[Dims], i: int, sizes: Sizes) -> Step:
    """Shared symbols are contracted, kept once, or kept on either side."""
    j = draw(st.integers(0, len(known) - 1))
    left = [chr(ord("a") + k) for k in range(len(known[i]))]
    symbol = dict(zip(left, known[i], strict=True))
    right, summed = [], set()
    for k, d in enumerate(known[j]):
        free = [x for x in left if symbol[x] == d and x not in right]
        relation = draw(st.sampled_from(["sum", "sum", "batch", "apart"])) if free else "apart"
        letter = free[0] if relation != "apart" else chr(ord("A") + k)
        right.append(letter)
        symbol[letter] = d
        if relation == "sum":
            summed.add(letter)
    kept = [x for x in dict.fromkeys([*left, *right]) if x not in summed]
    while len(kept) > 4 or _elements(tuple(symbol[x] for x in kept), sizes) > LARGEST:
        kept.pop(draw(st.integers(0, len(kept) - 1)))
    kept = draw(st.permutations(kept))
    return Step("einsum", (i, j), f"{''.join(left)},{''.join(right)}->{''.join(kept)}", tuple(symbol[x] for x in kept))


@st.composite
def meshes(draw: Any) -> dict[str, int]:
    """Up to 16 devices on up to four axes."""
    sizes: dict[str, int] = {}
    for axis in dict.fromkeys(draw(st.lists(st.sampled_from(("fsdp", "fsdp", *MESH)), min_size=2, max_size=4))):
        size = draw(st.sampled_from([2, 3, 4] if axis != "pp" else [L]))
        if math.prod(sizes.values()) * size <= 16:
            sizes[axis] = size
    return sizes


AXES = [*((axis,) for axis in MESH if axis != "pp"), TP, ("cp", *TP), ("dp", "fsdp"), ("fsdp", "ep"), ()]


@st.composite
def assignments(draw: Any) -> Assignment:
    """The library's own assignments, and any others."""
    if draw(st.booleans()):
        return assignment(zero=draw(st.integers(0, 3)), sp=draw(st.booleans()))

    def rules(names: Sequence[str]) -> Rules:
        return tuple((name, draw(st.sampled_from(AXES))) for name in draw(st.permutations(names)))

    return Assignment(
        compute=(("layers", ("pp",)), *rules(NAMES)),
        stored={role: rules(draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))) for role in ROLES},
    )


@st.composite
def _sizes(draw: Any, given: Assignment, mesh: Mapping[str, int]) -> dict[str, int]:
    """Sizes that the mesh divides, however a dim is sharded, also where it was split in two."""
    sizes = {"layers": L, "microbatch": M}
    for name in NAMES:
        rules = (given.compute, *given.stored.values())
        axes = {axis for each in rules for key, axes in each if key == name for axis in axes}
        major = math.prod(mesh.get(axis, 1) for axis in axes)
        sizes |= {f"{name}/0": major, f"{name}/1": 2}
        sizes[name] = major * draw(st.sampled_from([2, 1] if major > 1 else [2, 3]))
        if sizes[name] != 2 * major or name == "batch":  # batch is resized, so its size is one number
            del sizes[f"{name}/0"], sizes[f"{name}/1"]
    return sizes


def _axes(dims: Dims) -> tuple[str | None, ...]:
    return tuple(d if d in (*NAMES, "layers", "microbatch") else None for d in dims)


@st.composite
def cases(draw: Any, *, training: bool) -> Case:
    """A forward program, or a training step over microbatches."""
    mesh, given = draw(meshes()), draw(assignments())
    sizes = draw(_sizes(given, mesh))
    some = st.lists(st.sampled_from(("embed", "embed", *NAMES)), min_size=1, max_size=2, unique=True).map(tuple)
    x = ("batch", *draw(st.lists(st.sampled_from(NAMES[1:]), min_size=0, max_size=2, unique=True)))
    while _elements(x, sizes) > LARGEST and len(x) > 1:
        x = x[:-1]
    weights = draw(st.lists(some, min_size=1, max_size=2))
    weights += [("layers", *dims) for dims in draw(st.lists(some, min_size=1, max_size=1))]
    steps, known = draw(_steps([x, *weights], sizes, draw(st.integers(2, 8)), training, True))
    make = _training if training else _forward
    return Case(program=make(x, weights, steps, known, sizes), mesh=mesh, assignment=given, steps=steps)


def _forward(x: Dims, weights: list[Dims], steps: tuple[Step, ...], known: list[Dims], sizes: Sizes) -> Program:
    def fn(w: Any, x: Any) -> Any:
        return execute(steps, [x, *w], known, sizes)[-3:]

    return Program(
        name="forward",
        fn=fn,
        arguments=(
            Argument(
                name="w", role="parameters", tree=[spec(d, sizes) for d in weights], axes=[_axes(d) for d in weights]
            ),
            Argument(name="x", role="batch", tree=spec(x, sizes), axes=_axes(x)),
        ),
    )


def _training(x: Dims, weights: list[Dims], steps: tuple[Step, ...], known: list[Dims], sizes: Sizes) -> Program:
    def loss(w: Any, x: Any) -> Any:
        values = execute(steps, [x, *w], known, sizes)
        return sum(jnp.mean(jnp.sin(value.astype(jnp.float32))) for value in values[-2:])

    def step(w: Any, moments: Any, inputs: Any) -> Any:
        def microbatch(gradients: Any, x: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(w, x)
            return jax.tree.map(lambda a, g: a + g.astype(a.dtype), gradients, gradient), value

        zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), w)
        gradients, losses = lax.scan(microbatch, zeros, inputs)
        moments = jax.tree.map(lambda m, g: 0.9 * m + g * g, moments, gradients)
        w = jax.tree.map(lambda w, m, g: (w - 0.1 * g * lax.rsqrt(m * m + 1.0)).astype(w.dtype), w, moments, gradients)
        return w, moments, jnp.mean(losses)

    axes = [_axes(d) for d in weights]
    return Program(
        name="training",
        fn=step,
        arguments=(
            Argument(name="w", role="parameters", tree=[spec(d, sizes) for d in weights], axes=axes),
            Argument(name="m", role="optimizer", tree=[spec(d, sizes, jnp.float32) for d in weights], axes=axes),
            Argument(name="x", role="batch", tree=spec(("microbatch", *x), sizes), axes=("microbatch", *_axes(x))),
        ),
        donated=("w", "m"),
    )
