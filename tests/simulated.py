"""A sharded graph on the devices of a small mesh: each holds its own shards, and only collectives cross devices.

A copy is one array with a leading dim per mesh axis (a device is one index into those) and then a dim per factor,
holding the part that the device has. Ops work on each device's part by their StableHLO meaning; nothing but a
`Reshard`, and the hand-over between pipeline stages, looks at another device's data.

While it runs, *every* copy is compared with the whole program's value at that moment: putting the parts together
as the copy's State says must give that value, and devices that should agree must agree. So a simulation that ends
proves, for its inputs, that no collective is missing or misplaced, that every op keeps its meaning on local sizes,
that partial sums only pass through ops that allow it, and that sizes in bytes are those of what is really held.

It does not prove that no collective could be spared, nor anything about time: a trip of a loop over pipeline stages
runs when its turn comes in the whole program, on the data of the stage that owns its slice. In which order axes share
a dim is left open (`shards`); `out_of_order` says where that would matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy_ops import REDUCERS, compute, evaluate, look_up, numbers_of, window
from recorded import Array, Recorded, Shape
from shards import LEAD, alike, close, flat, gather, masked, padded, positions, reduced, replicate, take

from perfmodel.graph import DTYPE_BYTES, Op
from perfmodel.sharded import LocalLoop, LocalNode, LocalOp, Reshard, ShardedGraph
from perfmodel.state import Axes, State, sharding
from perfmodel.trace.ops import NOW
from perfmodel.work import DATA, MESH, MICROBATCH, PER_RANK, VIRTUAL, Evaluator

REDUCES, GATHERS = ("all_reduce", "reduce_scatter"), ("all_gather", "all_to_all")
SCATTERS = ("slice", "reduce_scatter", "all_to_all")
"""Kinds of collectives that add parts of a sum up, that undo a dim's axes, and that put axes on a dim."""


def simulate(
    recorded: Recorded, sharded: ShardedGraph, mesh: Mapping[str, int], arguments: Sequence[Array]
) -> list[Array]:
    """The results of a program that is run sharded, put together from the parts; axes left out have size 1.

    Raises AssertionError where a copy is not what it claims to be.
    """
    devices = _Devices(recorded, sharded, mesh)
    for copy, parameter, x in zip(sharded.parameters, recorded.graph.parameters, arguments, strict=True):
        devices.whole[parameter.value] = x
        devices.hold(copy, devices.place(x, parameter.value, sharded.copies[copy].state))
    devices.run(sharded.nodes)
    for copy in sharded.results:
        assert not sharded.copies[copy].state.partial, f"{sharded.copies[copy]}: a result is left as parts of a sum"
    for copy, parameter in zip(sharded.parameters, recorded.graph.parameters, strict=True):
        if parameter.alias is not None:
            kept = [sharded.copies[each].state.dims for each in (copy, sharded.results[parameter.alias])]
            assert alike(*kept), f"{parameter.name}: its update lies elsewhere"
    return [devices.collect(copy) for copy in sharded.results]


class _Devices:
    def __init__(self, recorded: Recorded, sharded: ShardedGraph, mesh: Mapping[str, int]) -> None:
        self.recorded = recorded
        self.graph = recorded.graph
        self.sharded = sharded
        self.mesh = tuple(mesh.get(axis, 1) for axis in MESH)
        spread = math.prod(mesh.get(axis, 1) for axis in DATA)
        traced = {VIRTUAL: 1.0, PER_RANK: self.graph.size("batch") / spread, MICROBATCH: self.graph.size(MICROBATCH)}
        self.sizes = Evaluator({**dict(zip(MESH, map(float, self.mesh), strict=True)), **traced})
        self.digits = _digits(sharded)
        self.held: dict[int, Array] = {}  # copies by id
        self.combine: dict[int, np.ufunc] = {}  # how the parts of a partial copy combine, where not by adding
        self.constant: set[int] = set()  # graph values made of constants only
        self.whole: dict[int, Array] = {}  # graph values by id, as the whole program has them now

    # -- copies ---------------------------------------------------------------------------------------------------

    def leaves(self, value: int) -> Shape:
        return tuple(self.graph.factors[f].size for dim in self.graph.values[value].dims for f in dim)

    def digits_of(self, value: int) -> list[Axes]:
        """Digits of the index ranges of a whole value, major to minor."""
        return [self.digits[f] for dim in self.graph.values[value].dims for f in dim]

    def part(self, axes: Axes, size: int) -> int:
        return size // math.prod(self.mesh[i] for i in positions(axes))

    def local(self, value: int, state: State) -> Shape:
        """Shape of a value's part on a device, factor by factor."""
        return tuple(self.part(axes, n) for axes, n in zip(flat(state), self.leaves(value), strict=True))

    def merged(self, value: int, state: State) -> Shape:
        """Shape of a value's part on a device, dim by dim."""
        sizes = iter(self.local(value, state))
        return tuple(math.prod(next(sizes) for _ in dim) for dim in self.graph.values[value].dims)

    def place(self, whole: Array, value: int, state: State) -> Array:
        """The parts of a whole value on the devices."""
        x = self.spread(whole, self.leaves(value), flat(state), self.digits_of(value))
        return masked(x, state.partial) if state.partial else x

    def spread(self, whole: Array, leaves: Sequence[int], axes: Sequence[Axes], digits: Sequence[Axes]) -> Array:
        """The parts of a whole array, given how long each of its index ranges is and what shards it."""
        x = replicate(whole.reshape(*(1,) * LEAD, *leaves), self.mesh)
        for leaf, (here, all_digits) in enumerate(zip(axes, digits, strict=True)):
            x = take(x, leaf, here, all_digits, self.mesh)
        return x

    def collect(self, copy: int) -> Array:
        """A whole value from its parts; devices that hold the same part must agree."""
        value, state = self.sharded.copies[copy].value, self.sharded.copies[copy].state
        x = reduced(self.fetch(copy), state.partial, self.combine.get(copy, np.add), self.mesh)
        for leaf, (axes, digits) in enumerate(zip(flat(state), self.digits_of(value), strict=True)):
            x = gather(x, leaf, axes, digits, self.mesh)
        first = x[(0,) * LEAD]
        assert close(x, np.broadcast_to(first, x.shape)), f"{self.sharded.copies[copy]}: devices disagree"
        return np.asarray(first.reshape(self.graph.shape(value)))

    def hold(self, copy: int, x: Array) -> None:
        """Take a copy into the devices' memories, once it is seen to be what it claims."""
        entry = self.sharded.copies[copy]
        placed = [axis for axes in flat(entry.state) for axis in axes]
        assert len({*placed, *entry.state.partial}) == len(placed) + len(entry.state.partial), f"{entry}: axis twice"
        assert x.shape == self.mesh + self.local(entry.value, entry.state), f"{entry}: got {x.shape[LEAD:]}"
        held = math.prod(x.shape[LEAD:]) * DTYPE_BYTES[self.graph.values[entry.value].dtype]
        assert self.sizes.term(entry.bytes) == held, f"{entry}: holds {held} bytes"
        self.held[copy] = x
        whole = self.whole[entry.value]
        assert close(self.collect(copy), whole), f"{entry}: its parts are not the whole value"

    def fetch(self, copy: int) -> Array:
        """A copy's parts; one made of constants only is made where it is needed."""
        if copy not in self.held:
            assert copy in self.sharded.free, f"copy {copy} {self.sharded.copies[copy]} is used but not there"
            entry = self.sharded.copies[copy]
            assert entry.value in self.constant, f"{entry}: is no constant"
            return self.place(self.whole[entry.value], entry.value, entry.state)
        return self.held[copy]

    # -- nodes ----------------------------------------------------------------------------------------------------

    def run(self, nodes: Sequence[LocalNode]) -> None:
        for node in nodes:
            if isinstance(node, Reshard):
                self.reshard(node)
            elif isinstance(node, LocalLoop):
                self.loop(node)
            else:
                self.op(node)

    def reshard(self, node: Reshard) -> None:
        """One collective, which may do to a state only what its name says."""
        source, target = self.sharded.copies[node.operand], self.sharded.copies[node.result]
        have, want, x = source.state, target.state, self.fetch(node.operand)
        combine = self.combine.get(node.operand, np.add)
        moved = set(node.axes)
        resolved, added = have.partial - want.partial, want.partial - have.partial
        assert resolved == (moved if node.kind in REDUCES else set()), node
        assert added == (moved if node.kind == "mask" else set()), node
        x = reduced(x, resolved, combine, self.mesh)
        kept = [tuple(axis for axis in old if axis in new) for old, new in zip(flat(have), flat(want), strict=True)]
        free = [
            tuple(axis for axis in digits if axis not in here)
            for digits, here in zip(self.digits_of(source.value), kept, strict=True)
        ]
        lost = [set(old) - set(here) for old, here in zip(flat(have), kept, strict=True)]
        gained = [set(new) - set(here) for new, here in zip(flat(want), kept, strict=True)]
        for leaf, axes in enumerate(lost):
            x = (padded if node.kind == "mask" else gather)(x, leaf, axes, free[leaf], self.mesh)
        for leaf, axes in enumerate(gained):
            x = take(x, leaf, axes, free[leaf], self.mesh)
        left = set[str]().union(*lost)
        assert left <= moved if node.kind == "mask" else left == (moved if node.kind in GATHERS else set()), node
        assert set[str]().union(*gained) == (moved if node.kind in SCATTERS else set()), node
        larger = target if node.kind == "all_gather" else source
        assert node.bytes == larger.bytes, node
        if want.partial and node.operand in self.combine:
            self.combine[node.result] = combine
        self.hold(node.result, masked(x, added - left))

    def op(self, node: LocalOp) -> None:
        op, copies = node.op, self.sharded.copies
        whole = evaluate(self.recorded, op, [self.whole[v] for v in op.operands])
        self.whole.update(zip(op.results, whole, strict=True))
        if self.constant.issuperset(op.operands):
            self.constant.update(op.results)
        for copy, value, dims in zip(node.results, op.results, op.result_dims, strict=True):
            assert copies[copy].value == value, node
            assert alike(copies[copy].state.dims, sharding(dims, node.axes)), f"{op.kind}: a result lies elsewhere"
        if node.results[0] in self.sharded.free:
            assert self.constant.issuperset(op.results), f"{op.kind} {op.source}: is no constant"
            parts = [
                self.place(x, v, copies[copy].state) for x, v, copy in zip(whole, op.results, node.results, strict=True)
            ]
        else:
            parts = self.locally(node, [self.operand(node, k) for k in range(len(op.operands))])
        for copy, value, x in zip(node.results, op.results, parts, strict=True):
            if op.reducer not in ("add", NOW) and copies[copy].state.partial:
                self.combine[copy] = REDUCERS[self.recorded.attributes[value]["combine"]]
            self.hold(copy, x.reshape(x.shape[:LEAD] + self.local(value, copies[copy].state)))

    def operand(self, node: LocalOp, k: int) -> Array:
        """Each device's part of an operand, dim by dim."""
        copy, value = node.operands[k], node.op.operands[k]
        entry = self.sharded.copies[copy]
        lies = alike(entry.state.dims, sharding(node.op.operand_dims[k], node.axes))
        assert entry.value == value, node
        assert lies, f"{node.op.kind} {node.op.source}: operand {k} lies elsewhere"
        assert copy not in self.combine, f"{node.op.kind} {node.op.source}: operand {k} is parts of a maximum"
        return self.fetch(copy).reshape(self.mesh + self.merged(value, entry.state))

    def locally(self, node: LocalOp, operands: Sequence[Array]) -> list[Array]:
        """What each device makes of its parts of the operands."""
        attributes = self.recorded.attributes[node.op.results[0]]
        if "body" in attributes:
            return _Kernel(self, node).run(operands)
        if node.op.kind in ("dynamic_slice", "dynamic_update_slice"):
            return [self.windowed(node, operands)]
        if node.op.kind in ("gather", "scatter"):
            return [self.looked_up(node, operands)]
        if node.op.kind == "slice":
            return [self.sliced(node, operands[0])]
        (result,) = node.results
        entry = self.sharded.copies[result]
        dtype = self.graph.values[entry.value].dtype
        return [compute(attributes, operands, self.merged(entry.value, entry.state), dtype, lead=LEAD)]

    def looked_up(self, node: LocalOp, operands: Sequence[Array]) -> Array:
        """A gather or scatter; of the dims of the table that are indexed, each device knows which rows are its own."""
        attributes = self.recorded.attributes[node.op.results[0]]
        numbers = numbers_of(attributes)
        entry = self.sharded.copies[node.results[0]]
        shape = self.merged(entry.value, entry.state)
        rows = [self.rows(node, d) if d in numbers.indexed else None for d in range(operands[0].ndim - LEAD)]
        result = np.empty(self.mesh + shape, operands[0].dtype)
        for device in np.ndindex(self.mesh):
            own = [
                None if each is None else _inverse(each[device], n)
                for each, n in zip(rows, self.graph.shape(node.op.operands[0]), strict=True)
            ]
            result[device] = look_up(node.op.kind, [x[device] for x in operands], numbers, shape, own)
        return result

    def sliced(self, node: LocalOp, x: Array) -> Array:
        """A slice; of dims that it sums over, each device knows which indices are its own, and has zeros for others."""
        attributes, shape = self.recorded.attributes[node.op.results[0]], self.graph.shape(node.op.operands[0])
        limits = zip(*(attributes[each] for each in ("start_indices", "limit_indices", "strides")), strict=True)
        cuts, (summed,) = [slice(*each) for each in limits], node.op.summed
        rows = {d: self.rows(node, d) for d, dim in enumerate(node.op.operand_dims[0]) if set(dim) & set(summed)}
        found = []
        for device in np.ndindex(self.mesh):
            own = [
                _inverse(rows[d][device], n) if d in rows else np.arange(x.shape[LEAD + d]) for d, n in enumerate(shape)
            ]
            kept = [each[cut] if len(each) == n else each for each, cut, n in zip(own, cuts, shape, strict=True)]
            where = np.ix_(*kept)
            inside = np.all(np.broadcast_arrays(*(each >= 0 for each in where)), axis=0)
            found.append(np.where(inside, x[device][where], 0))
        return np.reshape(found, (*self.mesh, *found[0].shape))

    def rows(self, node: LocalOp, d: int) -> Array:
        """Which indices of a dim of the first operand each device has."""
        indices = node.op.operand_dims[0][d]
        whole = np.arange(self.graph.shape(node.op.operands[0])[d])
        return self.spread(
            whole,
            [self.graph.factors[node.op.local[i]].size for i in indices],
            [node.axes[i] for i in indices],
            [self.digits[node.op.local[i]] for i in indices],
        ).reshape(*self.mesh, -1)

    def windowed(self, node: LocalOp, operands: Sequence[Array]) -> Array:
        """A dynamic slice or update. Over a pipeline's axis, the stage that owns the slice reads or writes it: what
        it reads, the other stages get with the hand-over, so that they hold what this trip's stage holds.
        """
        update = node.op.kind == "dynamic_update_slice"
        starts = operands[2 if update else 1 :]
        assert all((start == start.flat[0]).all() for start in starts), "devices disagree on where to slice"
        where = list(window(self.graph, node.op, [*operands[: 1 + update], *(start.flat[0] for start in starts)]))
        x = operands[0]
        owner = [slice(None)] * LEAD
        for d, dim in enumerate(node.op.operand_dims[0]):
            n, cut = x.shape[LEAD + d], where[d]
            axes = [axis for i in dim for axis in node.axes[i]]
            if any(i in node.op.stepped for i in dim):
                assert set(axes) <= {"pp"}, f"{node.op.source}: trips over {axes}"
                stage = cut.start // n
                where[d] = slice(cut.start - stage * n, cut.stop - stage * n)
                owner = [slice(stage, stage + 1) if axis in axes else slice(None) for axis in MESH]
            elif axes:  # a whole dim, of which each device has its part
                where[d] = slice(None)
        if not update:
            return replicate(x[(*owner, *where)], self.mesh)
        updated = np.array(x)
        updated[(*owner, *where)] = operands[1][tuple(owner)]
        return updated

    def loop(self, node: LocalLoop) -> None:
        copies, loop = self.sharded.copies, node.loop
        size = self.graph.factors[loop.trip].size
        assert self.sizes.term(node.trips) == self.part(node.axes, size)
        for k, parameter in enumerate(node.parameters):
            states = [copies[each[k]].state for each in (node.operands, node.parameters, node.yields, node.results)]
            same = all(alike(each.dims, states[0].dims) and each.partial == states[0].partial for each in states)
            assert same, f"{loop.source}: value {k} changes its state from trip to trip"
            self.whole[loop.parameters[k]] = self.whole[loop.operands[k]]
            if loop.operands[k] in self.constant and loop.parameters[k] == loop.yields[k]:
                self.constant.add(loop.parameters[k])
            self.hold(parameter, self.fetch(node.operands[k]))
        outside = dict(self.held)
        for _ in range(size):
            self.run(node.body)
            carried = [(self.fetch(y), self.whole[v]) for y, v in zip(node.yields, loop.yields, strict=True)]
            for (x, whole), parameter, value in zip(carried, node.parameters, loop.parameters, strict=True):
                self.held[parameter], self.whole[value] = x, whole
        self.held, inside = outside, self.held  # what a trip made is gone
        for k, (parameter, result) in enumerate(zip(node.parameters, node.results, strict=True)):
            self.whole[loop.results[k]] = self.whole[loop.parameters[k]]
            self.hold(result, inside[parameter])


def _inverse(rows: Array, size: int) -> Array:
    """Where in `rows` each index is, -1 where it is not."""
    found = np.full(size, -1)
    found[rows] = np.arange(len(rows))
    return found


class _Kernel:
    """A marked kernel: every device runs its body on its own parts."""

    def __init__(self, devices: _Devices, node: LocalOp) -> None:
        self.devices = devices
        self.body: Recorded = devices.recorded.attributes[node.op.results[0]]["body"]
        self.axes: dict[int, list[Axes]] = {}  # body factor -> what shards each part of it
        self.digits: dict[int, list[Axes]] = {}
        self.sizes: dict[int, list[int]] = {}
        graph = self.body.graph
        inputs = [graph.values[p.value].dims for p in graph.parameters]
        outputs = [graph.values[v].dims for v in graph.results]
        for own, outer in zip((*inputs, *outputs), (*node.op.operand_dims, *node.op.result_dims), strict=True):
            for dim, indices in zip(own, outer, strict=True):
                self._bind(node, dim, iter(indices))

    def _bind(self, node: LocalOp, dim: Sequence[int], indices: Iterator[int]) -> None:
        for factor in dim:
            axes, digits = list[Axes](), list[Axes]()
            sizes = list[int]()
            while math.prod(sizes) < self.body.graph.factors[factor].size:
                i = next(indices)
                axes.append(node.axes[i])
                digits.append(self.devices.digits[node.op.local[i]])
                sizes.append(self.devices.graph.factors[node.op.local[i]].size)
            assert self.axes.setdefault(factor, axes) == axes, f"{node.op.kind}: one index, sharded in two ways"
            self.digits[factor], self.sizes[factor] = digits, sizes

    def run(self, operands: Sequence[Array]) -> list[Array]:
        """The parts of the results; what is made of constants only is made whole, and each device takes its part."""
        graph = self.body.graph
        parts = {p.value: x for p, x in zip(graph.parameters, operands, strict=True)}
        whole: dict[int, Array] = {}
        for op in graph.nodes:
            assert isinstance(op, Op), "a kernel with a loop inside"
            (result,) = op.results
            if all(v in whole for v in op.operands):
                (whole[result],) = evaluate(self.body, op, [whole[v] for v in op.operands])
                parts[result] = self.part(result, whole[result])
            else:
                attributes, dtype = self.body.attributes[result], graph.values[result].dtype
                parts[result] = compute(
                    attributes, [parts[v] for v in op.operands], self.shape(result), dtype, lead=LEAD
                )
        return [parts[v] for v in graph.results]

    def shape(self, value: int) -> Shape:
        """Shape of a device's part of a value of the body."""
        return tuple(
            math.prod(self.devices.part(axes, n) for f in dim for axes, n in zip(*self._of(f), strict=True))
            for dim in self.body.graph.values[value].dims
        )

    def _of(self, factor: int) -> tuple[list[Axes], list[int]]:
        size = self.body.graph.factors[factor].size
        return self.axes.get(factor, [()]), self.sizes.get(factor, [size])

    def part(self, value: int, whole: Array) -> Array:
        """Each device's part of a whole value of the body."""
        factors = [f for dim in self.body.graph.values[value].dims for f in dim]
        axes = [each for f in factors for each in self._of(f)[0]]
        sizes = [n for f in factors for n in self._of(f)[1]]
        digits = [each for f in factors for each in self.digits.get(f, [()])]
        return self.devices.spread(whole, sizes, axes, digits).reshape(self.devices.mesh + self.shape(value))


def _digits(sharded: ShardedGraph) -> dict[int, Axes]:
    """Every mesh axis that ever shards a factor."""
    found: dict[int, Axes] = {}
    for copy in sharded.copies:
        factors = (f for dim in sharded.graph.values[copy.value].dims for f in dim)
        for factor, axes in zip(factors, flat(copy.state), strict=True):
            found[factor] = tuple(dict.fromkeys((*found.get(factor, ()), *axes)))
    return found


def out_of_order(sharded: ShardedGraph) -> list[str]:
    """Where the order of the axes that share a dim would matter, were shards blocks: axes that leave a dim which are
    not its minor ones, or join it but not as such, and operands whose axes are the right ones in another order.
    """
    found: list[str] = []

    def visit(nodes: Sequence[LocalNode]) -> None:
        for node in nodes:
            if isinstance(node, LocalLoop):
                visit(node.body)
            elif isinstance(node, Reshard):
                states = [sharded.copies[copy].state for copy in (node.operand, node.result)]
                pairs = zip(*map(flat, states), strict=True)
                found.extend(f"{node.kind}: {a} to {b}" for a, b in pairs if not _nest(a, b))
            else:
                wanted = [sharding(dims, node.axes) for dims in node.op.operand_dims]
                lie = [sharded.copies[copy].state.dims for copy in node.operands]
                found.extend(f"{node.op.kind}: {a} as {b}" for a, b in zip(lie, wanted, strict=True) if a != b)

    visit(sharded.nodes)
    return found


def _nest(a: Axes, b: Axes) -> bool:
    kept = sum(axis in b for axis in a)
    return a[:kept] == b[:kept]
