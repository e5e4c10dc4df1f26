"""Precision of a step: which matmuls are in which type, what is kept of each parameter, and what scaling moves."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import fake_machine

from perfmodel import Graph, Layout, LayoutError, MachineError, ModelError, load_machine, predict, trace, verify
from perfmodel.cli.main import main
from perfmodel.graph import DTYPE_BYTES
from perfmodel.layout import assignment
from perfmodel.models.config import parse_config
from perfmodel.models.optimizer import adam, state_of
from perfmodel.models.precision import PRESETS, SCALINGS, Precision, read_precision
from perfmodel.models.scaled import Equation, cast, in_blocks, scaled_matmul
from perfmodel.models.training import BATCH, MICROBATCHES, train_program
from perfmodel.models.weights import layout_of
from perfmodel.price import tensor_rate
from perfmodel.shard import shard
from perfmodel.sharded import LocalLoop, LocalNode, Reshard, ShardedGraph
from perfmodel.state import LOCAL
from perfmodel.verify import Verification

S = 64
TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
}
MIXTURE = {
    **TINY,
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
CONFIGS = {"dense": parse_config(TINY, "dense"), "mixture": parse_config(MIXTURE, "mixture")}


@cache
def traced(name: str, precision: str, recompute: str = "none") -> Graph:
    return trace(train_program(CONFIGS[name], seq_len=S, recompute=recompute, precision=read_precision(precision)))


# -- notation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Precision()),
        ("bf16", Precision()),
        ("fp8,moments=int8", Precision(linears="fp8", moments="int8")),
        ("master=0, grads=bf16", Precision(master=False, grads="bf16", reduce="bf16")),
        ("grads=bf16,reduce=f32", Precision(grads="bf16")),
        ("mxfp8,reduce=bf16", Precision(linears="mxfp8", reduce="bf16")),
        ("tf32", Precision(compute="tf32", master=False)),
    ],
)
def test_a_preset_and_keys_say_all_types(text: str, expected: Precision) -> None:
    assert read_precision(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp9", "got preset 'fp9', expected one of bf16, fp16, fp32, tf32, fp8, fp8-block, mxfp8, nvfp4: did you mean"),
        ("fp8,masters=0", "got key 'masters', expected one of master, grads, reduce, moments: did you mean master?"),
        ("moments=int4", "got moments=int4, expected moments=f32 or bf16 or int8: choose one"),
        ("master=0,master=1", "got master twice"),
        ("fp32,master=1", "got master=1 with fp32, expected none"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_what_is(text: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_precision(text)
    assert message in str(caught.value)


# -- what is kept -------------------------------------------------------------------------------------------------

SCALES = 2 * 4 / 256
"""Bytes per parameter of the scales of two moments whose dims are multiples of a block."""


@pytest.mark.parametrize(
    ("precision", "weights", "state"),
    [
        ("bf16", 2, 4 + 4 + 4),
        ("fp16", 2, 4 + 4 + 4),
        ("fp32", 4, 4 + 4),
        ("tf32", 4, 4 + 4),
        ("fp8-block", 2, 4 + 4 + 4),
        ("nvfp4,moments=bf16", 2, 4 + 2 + 2),
        ("bf16,master=0", 2, 4 + 4),
        ("bf16,master=0,moments=bf16", 2, 2 + 2),
    ],
)
def test_bytes_of_weights_and_state_per_parameter(precision: str, weights: int, state: int) -> None:
    graph = traced("dense", precision)
    held: defaultdict[str, float] = defaultdict(float)
    for each in graph.parameters:
        held[each.role] += graph.bytes(each.value)
    count = graph.parameter_count()
    counters = 4 if precision != "fp16" else 4 + 4 + 4  # the step; the scale of the loss, and steps since an overflow
    assert held["parameters"] == weights * count
    assert held["optimizer"] == state * count + counters


def test_moments_in_8_bits_are_a_byte_with_a_scale_for_each_block_and_vectors_stay_in_fp32() -> None:
    c = CONFIGS["dense"]
    shapes, axes = state_of(layout_of(c), read_precision("moments=int8"))
    vectors = (2 * c.layers + 1) * c.embed
    # Blocks do not lie along embed: of a head's dim they are no longer than that.
    short = c.layers * c.embed * c.head_dim * 2 * (c.heads + c.kv_heads)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["master"]))
    held = sum(
        leaf.size * leaf.dtype.itemsize for name in ("first", "second") for leaf in jax.tree.leaves(shapes[name])
    )
    matrices = count - vectors
    scales = 2 * 4 * (short / c.head_dim + (matrices - short) / 256)
    assert held == 2 * matrices + scales + 2 * 4 * vectors
    assert axes["first"]["layers"]["up"]["scales"] == ("layers", "embed", "mlp")


@pytest.mark.parametrize("moments", ["bf16", "int8"])
def test_narrow_moments_take_nearly_the_same_step(moments: str) -> None:
    """Of gradients that differ in sign alone, which a first step does not hide."""
    layout = {"w": ((512, 3), ("mlp", "embed")), "norm": ((5,), ("embed",))}
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 512 * 3)
    gradients = {key: jnp.asarray(signs[: int(np.prod(shape))].reshape(shape)) for key, (shape, _) in layout.items()}
    found = []
    for name in ("f32", moments):
        precision = read_precision(f"moments={name}")
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state_of(layout, precision)[0])
        for _ in range(3):
            _, state = adam(state, gradients, precision=precision)
        found.append(jax.tree.leaves(state["master"]))
    for wide, narrow in zip(*found, strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=0.02)


# -- matmuls ------------------------------------------------------------------------------------------------------


def flops(graph: Graph) -> dict[str, float]:
    """FLOPs of matmuls in a step by the type that they multiply in."""
    found: defaultdict[str, float] = defaultdict(float)
    for times, op in graph.walk():
        for work in op.work:
            if work.engine == "tensor":
                found[work.dtype] += times * work.flops
    return dict(found)


def linears(name: str) -> float:
    """FLOPs of one direction of the linears of all layers, over the traced step."""
    c = CONFIGS[name]
    attention = 2 * c.embed * c.head_dim * (c.heads + c.kv_heads)
    visited = 1 if c.experts is None else c.experts.active
    mlp = visited * 3 * c.embed * (c.mlp if c.experts is None else c.experts.width)
    return 2.0 * c.layers * (attention + mlp) * S * BATCH * MICROBATCHES


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(
    ("precision", "forward", "backward"),
    [
        ("fp8", "f8E4M3FN", "f8E5M2"),
        ("fp8-block", "f8E4M3FN", "f8E4M3FN"),
        ("mxfp8", "f8E4M3FN", "f8E4M3FN"),
        ("nvfp4", "f4E2M1FN", "f4E2M1FN"),
    ],
)
def test_narrow_matmuls_are_the_linears_of_the_layers_in_all_directions_and_no_others(
    name: str, precision: str, forward: str, backward: str
) -> None:
    """The weight's gradient multiplies the input with the gradient; ops go by their first operand."""
    once, wide = linears(name), flops(traced(name, "bf16"))
    expected = {forward: 3 * once} if forward == backward else {forward: 2 * once, backward: once}
    found = flops(traced(name, precision))
    assert {kind: found.pop(kind) for kind in expected} == expected
    assert found == {**wide, "bf16": wide["bf16"] - 3 * once}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bf16"), ("fp16", "f16"), ("fp32", "f32"), ("tf32", "tf32")])
def test_a_wide_step_multiplies_in_one_type(precision: str, dtype: str) -> None:
    assert set(flops(traced("dense", precision))) == {dtype}


SHAPES = {
    "bsd,df->bsf": ((2, 40, 96), (96, 72)),
    "bsd,dkgh->bskgh": ((2, 40, 96), (96, 2, 3, 16)),
    "bskgh,kghd->bsd": ((2, 40, 2, 3, 16), (2, 3, 16, 96)),
    "bsd,bsf->df": ((2, 40, 96), (2, 40, 72)),
    "berd,edf->berf": ((2, 3, 20, 96), (3, 96, 72)),
    "berf,edf->berd": ((2, 3, 20, 72), (3, 96, 72)),
    "berd,berf->edf": ((2, 3, 20, 96), (2, 3, 20, 72)),
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("text", SHAPES)
@pytest.mark.parametrize("name", ["fp8", "fp8-block", "mxfp8"])
def test_scaled_products_are_those_of_the_wide_operands_up_to_rounding(name: str, text: str, ragged: bool) -> None:
    if ragged and "e" not in text:
        pytest.skip("no experts")
    rng, scaling, equation = np.random.default_rng(0), SCALINGS[name], Equation.of(text)
    left, right = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES[text])
    counts = np.array([[25, 20, 15], [10, 50, 0]])
    narrow: list[Any] = []
    for x, letters in ((left, equation.left), (right, equation.right)):
        cut = equation.contracted[-1]
        if not scaling.block:
            narrow.append(cast(x, jnp.float32(100.0), scaling.forward)[0])
        else:
            other = next((c for c in reversed(letters) if c in equation.out and c != "e"), "")
            square = scaling.square and "b" not in letters
            narrow += in_blocks(x, letters, [cut + other if square else cut], scaling, scaling.forward)
    given = jnp.asarray(counts, jnp.int32) if ragged else None
    found = scaled_matmul(equation, narrow[0], narrow[1], jnp.float32, scaling.block, given)
    expected = of_experts(equation, left, right, counts) if ragged else jnp.einsum(text, left, right)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def of_experts(equation: Equation, left: Any, right: Any, counts: Any) -> Any:
    """Rows against the matrix of the expert that got them, row by row."""
    batch, experts, rows = left.shape[:3]
    hot = np.stack([np.repeat(np.eye(experts), of, axis=0) for of in counts])
    flat = np.asarray(left).reshape(batch, experts * rows, -1)
    if equation.right[0] == "e":
        matrices = np.asarray(right) if equation.right[1] == equation.left[-1] else np.swapaxes(right, 1, 2)
        return np.einsum("brk,bre,eko->bro", flat, hot, matrices).reshape(*left.shape[:3], -1)
    return np.einsum("brk,bre,bro->eko", flat, hot, np.asarray(right).reshape(batch, experts * rows, -1))


# -- bytes --------------------------------------------------------------------------------------------------------


def moved(precision: str, layout: Layout, kind: str, axis: str) -> float:
    """Bytes of collectives of a step over an axis."""
    found = predict(traced("dense", precision), layout, fake_machine(tensor_flops=RATES))
    return sum(float(c.bytes * c.count) for c in found.collectives if c.kind == kind and c.axis == axis)


RATES = dict.fromkeys(("bf16", "f16", "f32", "tf32", "f8", "f4"), 1.0)
FSDP = Layout(fsdp=2, zero=3, recompute="none", global_batch=4)


def test_fsdp_gathers_the_narrow_weights_that_the_layers_multiply_with() -> None:
    """A byte for each parameter of the linears, in place of two, in the forward and in the backward pass."""
    microbatches = 2
    count = linears("dense") / (2.0 * S * BATCH * MICROBATCHES)
    wide, narrow = (moved(each, FSDP, "all_gather", "fsdp") for each in ("bf16", "fp8"))
    assert wide - narrow == 2 * microbatches * count


@pytest.mark.parametrize(("precision", "size"), [("bf16", 4), ("grads=bf16", 2), ("reduce=bf16", 2)])
def test_gradients_in_bf16_are_reduced_in_half_the_bytes(precision: str, size: int) -> None:
    layout = Layout(dp=2, zero=0, recompute="none", global_batch=4)
    count = traced("dense", "bf16").parameter_count()
    assert moved(precision, layout, "all_reduce", "dp") == pytest.approx(size * count, rel=1e-4)


def moved_dims(nodes: Iterable[LocalNode], sharded: ShardedGraph) -> Iterator[set[str | None]]:
    """Names of what each collective moves."""
    graph = sharded.graph
    for node in nodes:
        if isinstance(node, LocalLoop):
            yield from moved_dims(node.body, sharded)
        elif isinstance(node, Reshard) and node.kind not in LOCAL:
            dims = graph.values[sharded.copies[node.operand].value].dims
            yield {graph.factors[factor].name for dim in dims for factor in dim}


@pytest.mark.parametrize("experts", ["ep", "tp+cp+ep"])
@pytest.mark.parametrize("precision", ["fp8", "fp8-block", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_no_layer_moves_what_all_layers_keep_of_activations(name: str, precision: str, experts: str) -> None:
    """Each writes its slice of a stack where it made it: scales of blocks too, whose type may have no zero."""
    sharded = shard(traced(name, precision), assignment(zero=0, sp=True, experts=experts))
    found = list(moved_dims(sharded.nodes, sharded))
    assert {"batch", "seq", "embed"} in found
    assert not [names for names in found if {"layers", "batch"} <= names]


def verified(precision: str, layout: Layout) -> Verification:
    config = parse_config({**TINY, "hidden_size": 64, "intermediate_size": 192}, "narrow")
    program = train_program(config, seq_len=S, recompute="none", precision=read_precision(precision))
    return verify(program, layout)


@pytest.mark.parametrize(
    ("precision", "layout"),
    [
        ("fp8", Layout(dp=2, fsdp=2, zero=3, recompute="none", global_batch=8)),
        ("fp8", Layout(fsdp=2, tp=2, zero=3, recompute="none", global_batch=8)),
        ("moments=bf16", Layout(fsdp=2, zero=1, recompute="none", global_batch=8)),
    ],
)
def test_collectives_in_narrow_types_are_those_of_shardy(precision: str, layout: Layout) -> None:
    """Among them sums over tp that are scaled before each rank takes its part of them."""
    assert verified(precision, layout).ok


@pytest.mark.parametrize(
    ("precision", "zero", "remedy"),
    [("mxfp8", 3, "verify with --precision fp8"), ("moments=int8", 1, "verify with --precision moments=bf16")],
)
def test_what_compilers_spread_otherwise_is_said_with_what_to_verify_instead(
    precision: str, zero: int, remedy: str
) -> None:
    found = verified(precision, Layout(fsdp=2, zero=zero, recompute="none", global_batch=8))
    assert not found.ok
    (note,) = found.notes
    assert remedy in note


# -- machines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "dtype", "name"),
    [("b200", "f4E2M1FN", "f4"), ("h100", "tf32", "tf32"), ("trn2", "tf32", "bf16"), ("trn3-gen1", "f4E2M1FN", "f8")],
)
def test_rates_of_narrow_types_are_those_of_the_machine_file(machine: str, dtype: str, name: str) -> None:
    loaded = load_machine(machine)
    assert tensor_rate(loaded, dtype) == loaded.tensor_flops[name]


def test_a_machine_without_a_type_names_what_it_has() -> None:
    with pytest.raises(MachineError, match=r"h100: got matmuls in f4E2M1FN, expected one of bf16.*: add tensor\.f4"):
        predict(traced("dense", "nvfp4"), FSDP, load_machine("h100"))


def test_the_command_line_takes_a_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    assert main(["trace", str(path), "--seq-len", "64", "--precision", "fp8,moments=int8", "--json"]) == 0
    assert main(["trace", str(path), "--precision", "fp9"]) == 2
    assert "expected one of bf16" in capsys.readouterr().err


# -- offload ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pp", [1, 2, 3])
def test_offload_leaves_the_state_out_of_memory_and_its_update_waits_for_the_link(pp: int) -> None:
    graph = traced("dense", "bf16")
    plain = Layout(pp=pp, zero=0, recompute="none", global_batch=4)
    away = Layout(pp=pp, zero=0, recompute="none", global_batch=4, offload=True)
    fast, slow = (fake_machine(host_link=rate, memory_bandwidth=1e6, tensor_flops=RATES) for rate in (1e30, 1e-3))
    before, hidden, waiting = predict(graph, plain, fast), predict(graph, away, fast), predict(graph, away, slow)
    state = before.memory_parts["optimizer"]
    assert state > 12 * graph.parameter_count() / (pp + 1)
    assert hidden.memory_parts["optimizer"] == 0.0
    assert hidden.memory_bytes == before.memory_bytes - state
    assert hidden.step_time_s == before.step_time_s
    assert waiting.breakdown["update"] == pytest.approx(state / 1e-3, rel=1e-3)
    assert waiting.fits


def test_offload_needs_a_link_to_the_host() -> None:
    found = predict(
        traced("dense", "bf16"),
        Layout.parse("dp=4,offload=1,recompute=none", ranks=4, global_batch=8),
        load_machine("trn2"),
    )
    assert "offload=1 without a chip.host_link in the file of trn2" in found.reasons
    assert Layout.parse("dp=4,offload=1", ranks=4).notation().endswith("offload=1")
    with pytest.raises(LayoutError):
        Layout.parse("offload=2", ranks=1)


@pytest.mark.parametrize("name", ["h100", "a100-80", "b200", "gb200-nvl72", "mi300x", "tpu-v5p"])
def test_machines_that_state_a_host_link_take_offload(name: str) -> None:
    machine = load_machine(name)
    layout = Layout.parse("dp=8,offload=1,recompute=none", ranks=8, global_batch=8)
    assert not any("offload" in reason for reason in predict(traced("dense", "bf16"), layout, machine).reasons)


def test_narrow_types_have_sizes() -> None:
    assert PRESETS.keys() >= SCALINGS.keys()
    assert (DTYPE_BYTES["f4E2M1FN"], DTYPE_BYTES["f8E8M0FNU"]) == (0.5, 1.0)
