"""XLA's own SPMD partitioner as an oracle: the collectives it inserts into a program under a layout.

The layout is stated to XLA as users state theirs: shardings of arguments and results, and a sharding constraint on
every activation, each where the assignment says (Shardy is not asked to guess activations). XLA partitions for fake
CPU devices and is stopped before it generates code; what it has inserted is read off the module. The hook that stops
it is global to a process, and devices are faked once per process, so the oracle runs in a child.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from hlo import Collective, read_module

from perfmodel.layout import Assignment, Layout, Rules
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, Reshard
from perfmodel.state import LOCAL
from perfmodel.work import TP, Evaluator, Number

if TYPE_CHECKING:
    from jaxlib.mlir import ir

    from perfmodel.graph import Graph
    from perfmodel.trace import Argument, Program
    from perfmodel.trace.walk import Walker

DEVICES = 8
TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": 256,
}
"""The smallest config.json whose heads are grouped."""
RULE, RULES = "sdy.sharding_rule", "sdy-populate-op-sharding-rules"
PASSES = (
    "sharding-propagation,flatten-call-graph,call-inliner,zero_sized_hlo_elimination,shardy-xla,spmd-partitioning,dce,"
    "cse,tuple-simplifier,while-loop-trip-count-annotator,apply-xla-transforms"
)
Names: TypeAlias = list[list[str | None]]
"""Per dim of a value, the names of its factors, major to minor."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A program (as `perfmodel.models.load_program` names it) and a layout."""

    model: str
    layout: Layout
    seq_len: int | None = None
    recompute: str = "full"


def derived(graph: Graph, layout: Layout) -> list[Collective]:
    """The collectives that perfmodel derives, named by their phase."""
    sharded = shard(graph, layout.assignment)
    sizes = layout.sizes(graph)
    evaluate = Evaluator(sizes)

    def visit(nodes: Sequence[LocalNode], times: float) -> Iterator[Collective]:
        for node in nodes:
            if isinstance(node, LocalLoop):
                yield from visit(node.body, times * float(evaluate.term(node.trips)))
            elif isinstance(node, Reshard) and node.kind not in LOCAL:
                yield Collective(
                    kind=node.kind,
                    axes=tuple(axis for axis in node.axes if sizes[axis] > 1),
                    dtype=graph.values[sharded.copies[node.operand].value].dtype,
                    bytes=float(evaluate.term(node.bytes)),
                    times=times,
                    name=node.phase,
                )

    return [collective for collective in visit(sharded.nodes, 1.0) if collective.axes]


def ask(questions: Sequence[Question]) -> list[list[Collective]]:
    """The collectives that XLA inserts, for each question."""
    child = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(question) for question in questions]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout)
    return [[Collective(**{**each, "axes": tuple(each["axes"])}) for each in answer] for answer in answers]


# -- In the child: stating the layout ------------------------------------------------------------------------------


def placed(dims: Sequence[Sequence[str | None]], rules: Rules) -> list[tuple[str, ...]]:
    """Mesh axes of each dim, whose factors are given by name, major to minor: earlier rules win, each axis once."""
    taken: set[str] = set()
    given: dict[tuple[int, int], tuple[str, ...]] = defaultdict(tuple)
    for name, axes in rules:
        for place in ((d, i) for d, dim in enumerate(dims) for i, own in enumerate(dim) if own == name):
            free = [axis for axis in axes if axis not in taken]
            if set(TP) <= set(axes) and not set(TP) <= set(free):  # tp is one axis to anything but heads
                free = [axis for axis in free if axis not in TP]
            given[place] += tuple(free)
            taken.update(free)
    return [tuple(axis for i in range(len(dim)) for axis in given[d, i]) for d, dim in enumerate(dims)]


class Stated:
    """A program with a layout stated: arguments and results placed, batch dims resized."""

    def __init__(self, program: Program, assignment: Assignment, sizes: Mapping[str, Number]) -> None:
        import jax

        self.program = program
        self.assignment = assignment
        self.sizes = {name: int(size) for name, size in sizes.items()}
        self.mesh_axes = [a for a, size in self.sizes.items() if size > 1 and a not in ("batch", "microbatch")]
        shape = tuple(self.sizes[axis] for axis in self.mesh_axes)
        auto = (jax.sharding.AxisType.Auto,) * len(shape)
        devices = jax.devices()[: math.prod(shape)]
        self.mesh = jax.make_mesh(shape, tuple(self.mesh_axes), axis_types=auto, devices=devices)

    def on_mesh(self, axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(axis for axis in axes if axis in self.mesh_axes)

    def leaves(self, argument: Argument, make: Callable[[Any, tuple[str | None, ...]], Any]) -> Any:
        """An argument's tree with each leaf made from its abstract value and axis names."""
        import jax

        structure: Any
        leaves, structure = jax.tree_util.tree_flatten(argument.tree)
        return structure.unflatten(list(map(make, leaves, axis_names(argument))))

    def lowered(self) -> Any:
        """The program lowered with its arguments and results placed."""
        import jax

        def resized(leaf: Any, names: tuple[str | None, ...]) -> Any:
            shape = [
                self.sizes[name] if name in ("batch", "microbatch") else size
                for name, size in zip(names, leaf.shape, strict=True)
            ]
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        def sharding(role: str) -> Callable[[Any, tuple[str | None, ...]], Any]:
            rules = (*self.assignment.stored.get(role, ()), *self.assignment.compute)

            def make(leaf: Any, names: tuple[str | None, ...]) -> Any:
                axes = placed([(name,) for name in names], rules)
                return jax.NamedSharding(self.mesh, jax.P(*(self.on_mesh(dim) for dim in axes)))

            return make

        arguments = self.program.arguments
        trees = [self.leaves(argument, resized) for argument in arguments]
        inputs = {argument.name: self.leaves(argument, sharding(argument.role)) for argument in arguments}
        outputs = [inputs[name] for name in self.program.donated]
        rest = jax.eval_shape(self.program.fn, *trees)[len(outputs) :]
        whole = jax.NamedSharding(self.mesh, jax.P())
        step = jax.jit(
            self.program.fn,
            in_shardings=tuple(inputs.values()),
            out_shardings=(*outputs, *(whole for _ in rest)),
            keep_unused=True,
        )
        return step.trace(*trees).lower()

    def constrain(self, module: ir.Module) -> None:
        """Constrain every activation to where the assignment wants it."""
        from jaxlib.mlir import ir
        from jaxlib.mlir.dialects import sdy

        unmark_kernels(module)
        names = factor_names(module, self.program)
        with module.context, ir.Location.unknown():
            for value, dims in names.items():
                axes = [self.on_mesh(dim) for dim in placed(dims, self.assignment.compute)]
                refs = [[sdy.AxisRefAttr.get(axis) for axis in dim] for dim in axes]
                sharding = sdy.TensorShardingAttr.get("mesh", [sdy.DimensionShardingAttr.get(r, True) for r in refs])
                with _behind(value):
                    constraint = sdy.ShardingConstraintOp(value, sharding)
                value.replace_all_uses_except(constraint.result, constraint.operation)


def _behind(value: ir.Value[Any]) -> ir.InsertionPoint:
    """Where the first op that uses a value may stand."""
    from jaxlib.mlir import ir

    owner = value.owner
    return ir.InsertionPoint.at_block_begin(owner) if isinstance(owner, ir.Block) else ir.InsertionPoint.after(owner)


def _each(module: ir.Module, visit: Callable[[ir.Operation], None]) -> None:
    from jaxlib.mlir import ir

    def step(op: ir.Operation) -> ir.WalkResult:
        visit(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(step)


def unmark_kernels(module: ir.Module) -> None:
    """Make marked kernels plain calls of their bodies, which XLA then partitions op by op."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import func

    kernels: list[ir.Operation] = []
    _each(module, lambda op: kernels.append(op) if op.name == "stablehlo.composite" else None)
    for kernel in kernels:
        with kernel.location, ir.InsertionPoint(kernel):
            types = [result.type for result in kernel.results]
            callee = ir.FlatSymbolRefAttr(kernel.attributes["decomposition"])
            call = func.CallOp(types, callee, list(kernel.operands))
        for old, new in zip(kernel.results, call.results, strict=True):
            old.replace_all_uses_with(new)
        kernel.erase()


def factor_names(module: ir.Module, program: Program) -> dict[ir.Value[Any], Names]:
    """Names of the factors of each dim of the values that are to be constrained: every activation that an op computes,
    and the tables that gathers read from and scatters add to. A value that ranges over one factor twice (attention
    scores) is not, since a factor can be sharded in one dim only, and which is for XLA to say.
    """
    from jaxlib.mlir import ir, passmanager

    from perfmodel.trace.program import Hints
    from perfmodel.trace.walk import Walker

    class Recorder(Walker):
        def __init__(self) -> None:
            super().__init__(module, Hints())
            self.seen: dict[Any, set[int]] = defaultdict(set)
            self.tables: set[Any] = set()

        def _visit(self, op: Any, operands: list[int], *rest: Any) -> list[int]:
            results = super()._visit(op, operands, *rest)
            for value, index in zip((*op.operands, *op.results), (*operands, *results), strict=True):
                self.seen[value].add(index)
            if op.name in ("stablehlo.gather", "stablehlo.scatter"):
                self.tables.update((op.operands[0], *(op.results if op.name == "stablehlo.scatter" else ())))
            return results

    with module.context:
        passmanager.PassManager.parse(f"builtin.module(func.func({RULES}))").run(module.operation)
    walker = Recorder()
    (block,) = walker.functions["main"].regions[0].blocks
    walker.function("main", _inputs(walker, block, program), "", [])
    _each(module, lambda op: op.attributes.__delitem__(RULE) if RULE in op.attributes else None)
    walker.space.hand_down_names()
    found = {}
    for value, ids in walker.seen.items():
        leaves = [[walker.space.leaves([node]) for node in walker.nodes[i]] for i in ids]
        first, *others = [[[walker.space.label(leaf)[0] for leaf in dim] for dim in dims] for dims in leaves]
        computed = not isinstance(value.owner, ir.Block) and any("batch" in dim for dim in first)
        flat = [leaf for dim in leaves[0] for leaf in dim]
        if (computed or value in walker.tables) and len(set(flat)) == len(flat) and all(o == first for o in others):
            found[value] = first
    return found


def _inputs(walker: Walker, block: ir.Block, program: Program) -> list[int]:
    """Values for the arguments of the main function, their dims named."""
    from perfmodel.trace.stablehlo import tensor_type

    names = [each for argument in program.arguments for each in axis_names(argument)]
    inputs = []
    for argument, axes in zip(block.arguments, names, strict=True):
        shape, dtype = tensor_type(argument)
        inputs.append(walker.new_value(shape, dtype))
        walker.nodes[-1] = [walker.space.new(n, axis, "argument") for n, axis in zip(shape, axes, strict=True)]
    return inputs


def axis_names(argument: Argument) -> list[tuple[str | None, ...]]:
    """Axis names of each array of an argument."""
    import jax

    structure: Any = jax.tree_util.tree_structure(argument.tree)
    return [tuple(names) for names in structure.flatten_up_to(argument.axes)]


# -- In the child: partitioning ------------------------------------------------------------------------------------


def partitioned(lowered: Any) -> Any:
    """The module after XLA's partitioner, before code generation."""
    from jax.extend import xla
    from jaxlib import _hlo  # type: ignore[attr-defined]

    found: list[bytes] = []

    def stop(proto: bytes) -> None:
        found.append(proto)
        raise RuntimeError("stopped before code generation")

    stage = xla.PipelineStage.PRE_SCHEDULER
    xla.register_hlo_module_transformation(stop, name="stop", stage=stage, platforms="cpu")
    try:
        lowered.compile(compiler_options={"xla_enable_hlo_passes_only": PASSES})
    except Exception:
        if not found:
            raise
    finally:
        xla.clear_hlo_module_transformation(name="stop", stage=stage, platforms="cpu")
    return _hlo.HloModule.from_serialized_hlo_module_proto(found[0])


@cache
def traced(model: str, seq_len: int | None, recompute: str) -> tuple[Program, Graph]:
    """A program, and its graph as perfmodel traces it."""
    from perfmodel.models import load_program
    from perfmodel.trace import trace

    program = load_program(model, seq_len=seq_len, recompute=recompute)
    return program, trace(program)


def answer(question: Question) -> list[Collective]:
    """The collectives that XLA inserts into a program under a layout."""
    program, graph = traced(question.model, question.seq_len, question.recompute)
    stated = Stated(program, question.layout.assignment, question.layout.sizes(graph))
    lowered = stated.lowered()
    stated.constrain(lowered.compiler_ir("stablehlo"))
    return read_module(partitioned(lowered), stated.mesh.shape)


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    questions = [Question(**{**each, "layout": Layout(**each["layout"])}) for each in json.load(sys.stdin)]
    json.dump([[asdict(collective) for collective in answer(question)] for question in questions], sys.stdout)
