"""StableHLO files: every form gives the graph of the program that was lowered."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from programs import mlp_graph, mlp_program

from perfmodel import ModelError, TraceError, load_program
from perfmodel.cli.main import main
from perfmodel.graph import Graph
from perfmodel.trace import Hints, read_program, trace


@cache
def jitted() -> tuple[Any, list[Any]]:
    program = mlp_program()
    assert callable(program.fn)
    return jax.jit(program.fn, donate_argnums=(0, 1)), [argument.tree for argument in program.arguments]


def lowered() -> ir.Module:
    step, trees = jitted()
    module: ir.Module = step.trace(*trees).lower(lowering_platforms=("tpu",)).compiler_ir("stablehlo")
    return module


def text() -> bytes:
    return str(lowered().operation.get_asm(enable_debug_info=True)).encode()


def bytecode() -> bytes:
    buffer = io.BytesIO()
    lowered().operation.write_bytecode(buffer)
    return buffer.getvalue()


def artifact() -> bytes:
    module = lowered()
    with module.context:
        copy = ir.Module.parse(bytecode())  # serialising rewrites the module, which JAX keeps
    return bytes(stablehlo.serialize_portable_artifact(copy, stablehlo.get_minimum_version()))


def exported() -> bytes:
    pytest.importorskip("flatbuffers")
    from jax import export

    step, trees = jitted()
    return bytes(export.export(step, platforms=("tpu",))(*trees).serialize())


FORMS = {
    "step.mlir": text,
    "step.mlirbc": bytecode,
    "step.vhlo": artifact,
    "step.jax_export": exported,
    "step": exported,
}


def written(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def counts(graph: Graph) -> tuple[Any, ...]:
    loops = [node.source for node in graph.nodes if hasattr(node, "trip")]
    return graph.flops(), graph.flops("vector"), graph.model_flops(), graph.parameter_count(), loops


@pytest.mark.parametrize(("name", "made"), FORMS.items())
def test_a_file_counts_like_the_program(tmp_path: Path, name: str, made: Callable[[], bytes]) -> None:
    graph = trace(load_program(written(tmp_path, name, made())))
    assert counts(graph) == counts(mlp_graph())
    assert graph.name == "step"
    parameters = [(p.name, p.role, p.alias) for p in graph.parameters]
    assert parameters == [(p.name, p.role, p.alias) for p in mlp_graph().parameters]


def test_a_form_is_told_by_what_is_in_the_file(tmp_path: Path) -> None:
    assert counts(trace(read_program(written(tmp_path, "step.bin", text())))) == counts(mlp_graph())


def test_dims_of_a_file_are_called_after_its_arguments(tmp_path: Path) -> None:
    graph = trace(read_program(written(tmp_path, "step.mlir", text())))
    assert {factor.name for factor in graph.factors} == {None}
    down = graph.values[graph.parameters[0].value].dims
    assert [graph.factors[f].origin for dim in down for f in dim] == [f"weights.down.{d}" for d in range(3)]


def test_a_module_without_names_has_numbered_arguments_and_tells_parameters_by_their_buffers(tmp_path: Path) -> None:
    graph = trace(read_program(written(tmp_path, "step.mlir", str(lowered()).encode())))
    roles = [(p.name, p.role) for p in graph.parameters]
    assert roles == [*((f"arg{i}", "parameters") for i in range(4)), ("arg4", "other")]


def bare(*donated: int) -> bytes:
    """A training step as text without locations; roles follow from buffers alone."""
    step = jax.jit(lambda w, x: w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), donate_argnums=donated)
    shapes = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((2, 4), jnp.float32)
    return str(step.trace(*shapes).lower(lowering_platforms=("tpu",)).compiler_ir("stablehlo")).encode()


def test_a_file_without_locations_is_one_phase_and_has_lines_of_its_own(tmp_path: Path) -> None:
    graph = trace(read_program(written(tmp_path, "step.mlir", bare(0))))
    (note,) = graph.notes
    assert note.startswith("the file has no locations, so that all of it counts as the forward pass")
    assert {op.phase for _, op in graph.walk()} == {"forward"}
    dots = [i for i, line in enumerate(bare(0).decode().splitlines(), 1) if "dot_general" in line]
    assert [op.source for _, op in graph.walk() if op.kind == "dot_general"] == [f"line {i}" for i in dots]


def test_a_loop_of_a_file_without_locations_is_hinted_at_by_its_line(tmp_path: Path) -> None:
    step = jax.jit(lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: x @ x, x))
    shapes = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    program = read_program(written(tmp_path, "loop.mlir", str(step.trace(*shapes).lower().as_text()).encode()))
    with pytest.raises(TraceError, match=r"^line \d+: got a loop") as info:
        trace(program)
    line = str(info.value).partition(":")[0]
    assert trace(replace(program, hints=Hints(trip_counts={line: 5}))).flops() == 5 * 2 * 4**3


def test_a_file_whose_parameters_nobody_can_tell_says_so(tmp_path: Path) -> None:
    graph = trace(read_program(written(tmp_path, "step.mlir", bare())))
    assert graph.parameter_count() == 0
    assert graph.notes[0].startswith("no argument of the file is known to be a parameter")
    assert trace(read_program(written(tmp_path, "step.mlir", text()))).notes == ()
    assert mlp_graph().notes == ()


def test_tokens_of_a_file_are_no_arguments(tmp_path: Path) -> None:
    array = "tensor<4xf32>"
    module = f"""
      func.func @main(%t: !stablehlo.token, %a: {array}, %b: {array} {{tf.aliasing_output = 2 : i32}})
          -> ({array}, !stablehlo.token, {array}) {{
        return %a, %t, %b : {array}, !stablehlo.token, {array}
      }}"""
    graph = trace(read_program(written(tmp_path, "step.mlir", module.encode())))
    assert [(p.name, p.role, p.alias) for p in graph.parameters] == [("arg0", "other", None), ("arg1", "parameters", 1)]
    assert [graph.shape(v) for v in graph.results] == [(4,), (4,)]


def test_a_donor_is_taken_over_by_the_first_result_of_its_type(tmp_path: Path) -> None:
    vector, pair = (f"tensor<{n}xf32> {{jax.buffer_donor = true}}" for n in (4, 2))
    module = f"""
      func.func @main(%a: {vector}, %b: {pair}, %c: {vector}, %d: {vector})
          -> (tensor<2xf32>, tensor<4xf32>, tensor<4xf32>) {{
        return %b, %a, %c : tensor<2xf32>, tensor<4xf32>, tensor<4xf32>
      }}"""
    graph = trace(read_program(written(tmp_path, "step.mlir", module.encode())))
    assert [(p.alias, p.role) for p in graph.parameters] == [
        (1, "parameters"),
        (0, "parameters"),
        (2, "parameters"),
        (None, "other"),
    ]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("state.params['dense']['kernel']", "parameters"),
        ("state.opt_state[0].mu['dense']['kernel']", "optimizer"),
        ("model.layers[3].weight", "parameters"),
        ("batch['tokens']", "batch"),
        ("key", "other"),
        ("microbatches", "other"),
    ],
)
def test_roles_follow_from_words_of_the_name(tmp_path: Path, name: str, role: str) -> None:
    module = f'func.func @main(%a: tensor<4xf32> loc("{name}")) -> tensor<4xf32> {{ return %a : tensor<4xf32> }}'
    (argument,) = read_program(written(tmp_path, "step.mlir", module.encode())).arguments
    assert (argument.name, argument.role) == (name, role)


def test_a_rematerialised_step_says_so(tmp_path: Path) -> None:
    step = jax.jit(jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x))))))
    module = step.trace(jax.ShapeDtypeStruct((4,), jnp.float32)).lower().compiler_ir("stablehlo")
    asm = str(module.operation.get_asm(enable_debug_info=True))
    assert read_program(written(tmp_path, "step.mlir", asm.encode())).recompute == "full"
    assert read_program(written(tmp_path, "other.mlir", text())).recompute == "none"


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "got"),
    [
        ("bad.mlir", b"module { oops }", "custom op 'oops' is unknown"),
        ("bad.bin", b"\x00\x01\xff\xfe" * 20, "80 bytes of no known form"),
        ("bad.mlirbc", bytecode()[:300], "attempting to parse"),
        ("bad.vhlo", artifact()[:300], "bytecode"),
        ("empty.mlir", b"", "no function named main"),
        ("other.mlir", b"func.func @step() { return }", "no function named main"),
        ("dynamic.mlir", b"func.func @main(%a: tensor<?xf32>) { return }", "a dynamic shape"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str, data: bytes, got: str) -> None:
    with pytest.raises(TraceError, match=rf"got [^\n]*{got}[^\n]*, expected [^\n]*$"):
        read_program(written(tmp_path, name, data))


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TraceError, match=r"nowhere.mlir: got No such file"):
        load_program("nowhere.mlir")


def test_options_of_presets_are_errors_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="got sequence length 128, expected none"):
        load_program(written(tmp_path, "step.mlir", text()), seq_len=128)


# -- commands -----------------------------------------------------------------------------------------------------


def test_commands_take_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "step.mlirbc", bytecode())
    assert main(["trace", path, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"]["flops"] == mlp_graph().flops()
    rows = {row["origin"]: row for row in document["factors"]}
    assert rows["weights.down.0"]["share"] == pytest.approx(1.0)
    assert rows["weights.down.0"]["parameters"] == 4
    assert rows["weights.down.2"]["parameters"] == 5
    assert main(["estimate", path, "--machine", "h100", "--chips", "1", "--layout", "dp=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
