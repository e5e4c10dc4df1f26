"""Sharding constraints on the activations of a module, where an assignment wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func, sdy

from perfmodel.graph import Loop, Node, Op
from perfmodel.layout import Assignment
from perfmodel.placement import Placement
from perfmodel.state import State, sharding
from perfmodel.trace import Program
from perfmodel.trace.walk import KERNEL_PREFIX
from perfmodel.verify.mesh import Mesh
from perfmodel.verify.record import KERNEL, each_op, traced

Places: TypeAlias = list[list[str]]
"""Mesh axes of each dim of a value."""


def constrain(module: ir.Module, program: Program, assignment: Assignment, mesh: Mesh) -> int:
    """Constrain every activation that an op computes, and the tables that gathers read from and scatters add to.

    Returns how many no constraint can express.

    What an op that sums (and what a marked kernel) reads and makes is constrained to where the assignment has the op
    computed, which says over which axes it sums; then what it makes to where that rests. A value that ranges over one
    factor twice (attention scores) is not constrained, since a factor can be sharded in one dim only, and which is for
    the compiler to say. Marked kernels are opened, and partitioned op by op.
    """
    opened, whole = (_Places(module, program, assignment, mesh, kernels=kernels) for kernels in (False, True))
    rests, reads = ({**opened.rests(), **whole.rests()}, {**opened.reads(), **whole.reads()})
    name = _mesh_name(module)
    for value, steps in rests.items():
        for dims in steps:
            constrained = _constrained(value, _behind(value), [mesh.on(dim) for dim in dims], name)
            value.replace_all_uses_except(constrained.result, constrained)
    for (op, k), dims in reads.items():
        op.operands[k] = _constrained(
            op.operands[k], ir.InsertionPoint(op), [mesh.on(dim) for dim in dims], name
        ).result
    unmark_kernels(module)
    return len(whole.unsaid)


class _Places:
    """Where the values of a module are wanted; `kernels` tells whether marked kernels are ops."""

    def __init__(
        self,
        module: ir.Module,
        program: Program,
        assignment: Assignment,
        mesh: Mesh,
        *,
        kernels: bool,
    ) -> None:
        self.mesh = mesh
        self.unsaid: set[int] = set()
        self.recorder, self.graph = traced(module, program, kernels=kernels)
        dropped = self.recorder.dropped
        self.seen = {v: kept for v, ids in self.recorder.seen.items() if (kept := [i for i in ids if i not in dropped])}
        self.place = Placement(self.graph, assignment)
        self.makers = {result: op for op in _ops(self.graph.nodes) for result in op.results}

    def rests(self) -> dict[Any, list[Places]]:
        """Where each value that is to be constrained lies, the last place first."""
        seen = {value: ids for value, ids in self.seen.items() if self.concerns(value)}
        return {value: places for value, ids in seen.items() if (places := self.agreed(ids))}

    def concerns(self, value: Any) -> bool:
        """Whether a value is an activation that an op computes, or a table."""
        (index, *_) = self.seen[value]
        computed = not isinstance(value.owner, ir.Block) and self.place.is_activation(index)
        return computed or value in self.recorder.tables

    def agreed(self, ids: Iterable[int]) -> list[Places]:
        """The places of a value that is called for in several places, if they are the same."""
        first, *others = [self.places(i) for i in sorted(ids)]
        return first if all(other == first for other in others) else []

    def places(self, index: int) -> list[Places]:
        """Where a value rests, and before that, where the op that sums it up makes it."""
        dims = self.graph.values[index].dims
        flat = [factor for dim in dims for factor in dim]
        if len(set(flat)) < len(flat):
            return []
        states = [self.place.resting_state(index)]
        op = self.makers.get(index)
        if op is not None and _moves(op):
            made = op.result_dims[op.results.index(index)]
            states.append(State(sharding(made, self.place.computed(op))))
        if not all(self.stateable(index, state) for state in states):
            self.unsaid.add(index)
            return []
        places = [_places(state) for state in states]
        return places[:1] if places[0] == places[-1] else places

    def stateable(self, index: int, state: State) -> bool:
        """Whether a sharding says it: of a dim of several factors, only the major ones can be in parts."""
        for dim, dim_axes in zip(self.graph.values[index].dims, state.dims, strict=True):
            whole = False
            for factor, axes in zip(dim, dim_axes, strict=True):
                parts = math.prod(self.mesh.sizes.get(axis, 1) for axis in axes)
                if whole and parts > 1:
                    return False
                whole = parts < self.graph.factors[factor].size
        return True

    def reads(self) -> dict[tuple[ir.Operation, int], Places]:
        """Where what an op that sums reads lies meanwhile, by op and operand."""
        found: dict[tuple[ir.Operation, int], Places] = {}
        for op, sites in self.recorder.sums.items():
            wanted = [self.computed(self.makers[index]) for index in sites if index in self.makers]
            if wanted and wanted[0] and all(each == wanted[0] for each in wanted):
                found |= {(op, k): dims for k, dims in enumerate(wanted[0])}
        return found

    def computed(self, op: Op) -> list[Places]:
        """The places of an op's operands by the assignment alone."""
        if not _moves(op):
            return []
        axes = self.place.computed(op)
        states = [State(sharding(dims, axes)) for dims in op.operand_dims]
        if not all(map(self.stateable, op.operands, states)):
            return []
        return [_places(state) for state in states]


def _moves(op: Op) -> bool:
    """Whether an op may want its operands elsewhere than they rest; one with a factor twice says nothing about it."""
    once = len(set(op.local)) == len(op.local)
    return once and (any(op.summed) or op.kind.startswith(KERNEL_PREFIX))


def _places(state: State) -> Places:
    return [[axis for axes in dim for axis in axes] for dim in state.dims]


def _ops(nodes: Sequence[Node]) -> Iterator[Op]:
    for node in nodes:
        if isinstance(node, Loop):
            yield from _ops(node.body)
        else:
            yield node


# -- Modules -----------------------------------------------------------------------------------------------------------


def unmark_kernels(module: ir.Module) -> None:
    """Make marked kernels plain calls of their bodies, which a compiler then partitions op by op."""
    kernels: list[ir.Operation] = []
    each_op(module, lambda op: kernels.append(op) if op.name == KERNEL else None)
    for kernel in kernels:
        with kernel.location, ir.InsertionPoint(kernel):
            types = [result.type for result in kernel.results]
            callee = ir.FlatSymbolRefAttr(kernel.attributes["decomposition"])
            call = func.CallOp(types, callee, list(kernel.operands))
        for old, new in zip(kernel.results, call.results, strict=True):
            old.replace_all_uses_with(new)
        kernel.erase()


def _mesh_name(module: ir.Module) -> str:
    """The symbol of the mesh that arguments lie on."""
    mesh = next(op for op in module.body.operations if op.operation.name == "sdy.mesh")
    return ir.StringAttr(mesh.operation.attributes["sym_name"]).value


def _constrained(
    value: ir.Value[Any], where: ir.InsertionPoint, dims: Sequence[Sequence[str]], mesh: str
) -> ir.Operation:
    """A constraint on a value."""
    with value.context, ir.Location.unknown(), where:
        refs = [[sdy.AxisRefAttr.get(axis) for axis in dim] for dim in dims]
        sharding = sdy.TensorShardingAttr.get(mesh, [sdy.DimensionShardingAttr.get(r, True) for r in refs])
        return sdy.ShardingConstraintOp(value, sharding).operation


def _behind(value: ir.Value[Any]) -> ir.InsertionPoint:
    """Where the first op that uses a value may stand."""
    owner = value.owner
    return ir.InsertionPoint.at_block_begin(owner) if isinstance(owner, ir.Block) else ir.InsertionPoint.after(owner)
