"""Programs of many kinds: counts against XLA's, published ones and closed forms, and what sharding moves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import pytest
from jax.extend import core
from partitioner import derived
from zoo import equinox_gru, linen, nnx
from zoo.adam import adam
from zoo.branches import branches
from zoo.constrained import constrained
from zoo.deepseek import deepseek
from zoo.dlrm import dlrm
from zoo.explicit import explicit
from zoo.mamba import mamba
from zoo.mixtral import mixtral
from zoo.ragged import ragged
from zoo.remat import POLICIES, remat
from zoo.resnet import resnet
from zoo.t5 import t5
from zoo.unet import unet
from zoo.vit import vit

from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.trace import Argument, Program, trace

F32 = 4

PROGRAMS: Mapping[str, Callable[[], Program]] = {
    "adam": adam,
    "branches": branches,
    "constrained": constrained,
    "deepseek": deepseek,
    "dlrm": dlrm,
    "equinox": equinox_gru.classifier,
    "explicit": explicit,
    "linen": linen.classifier,
    "mamba": mamba,
    "mamba associative": partial(mamba, associative=True),
    "mixtral": mixtral,
    "nnx": nnx.transformer,
    "ragged": ragged,
    **{f"remat {policy}": partial(remat, policy=policy) for policy in POLICIES},
    "resnet": resnet,
    "t5": t5,
    "unet": unet,
    "vit": vit,
}


@cache
def graph(name: str) -> Graph:
    return trace(PROGRAMS[name]())


# -- counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_traces_and_trains(name: str) -> None:
    phases = {op.phase for _, op in graph(name).walk() if op.work}
    assert {"forward", "backward", "update"} <= phases
    leaves = [leaf for a in PROGRAMS[name]().arguments if a.role == "parameters" for leaf in jax.tree.leaves(a.tree)]
    assert graph(name).parameter_count() == sum(math.prod(leaf.shape) for leaf in leaves)


@cache
def flops_by_xla(matmul: Any, shapes: tuple[tuple[tuple[int, ...], Any], ...], **params: Any) -> float:
    """FLOPs that XLA counts for one operation by itself."""
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    lowered = jax.jit(lambda *x: matmul.bind(*x, **params)).lower(*operands)
    return cost(lowered)["flops"]


def cost(lowered: Any) -> Mapping[str, float]:
    """What XLA counts in a module as it is lowered."""
    found: Mapping[str, float] = lowered.cost_analysis()
    return found


def xla_cost(program: Program) -> Mapping[str, float]:
    step: Any = program.fn
    return cost(jax.jit(step).lower(*(argument.tree for argument in program.arguments)))


def with_real_borders(shape: tuple[int, ...], params: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A convolution whose padding is part of its image: XLA doesn't count what meets padding, machines multiply it."""
    image, padding = list(shape), []
    sides = zip(params["dimension_numbers"].lhs_spec[2:], params["padding"], params["lhs_dilation"], strict=True)
    for dim, (low, high), dilation in sides:
        before, after = math.ceil(max(low, 0) / dilation), math.ceil(max(high, 0) / dilation)
        image[dim] += before + after
        padding.append((low - dilation * before, high - dilation * after))
    return tuple(image), {**params, "padding": tuple(padding)}


def matmuls(jaxpr: Any, times: float = 1.0) -> Iterator[tuple[float, Any]]:
    """The matmuls and convolutions that JAX sees, with how often each runs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield times, equation
        trips = float(equation.params["length"]) if equation.primitive.name == "scan" else 1.0
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from matmuls(getattr(inner, "jaxpr", inner), times * trips)


def _is_jaxpr(tree: Any) -> bool:
    return isinstance(tree, core.Jaxpr | core.ClosedJaxpr)


def counted_by_xla(program: Program) -> float:
    """FLOPs of a program's matmuls and convolutions, each counted by XLA alone."""
    step: Any = program.fn
    closed = jax.make_jaxpr(step)(*(argument.tree for argument in program.arguments))
    total = 0.0
    for times, equation in matmuls(closed.jaxpr):
        left, right = (variable.aval for variable in equation.invars)
        shape, params = left.shape, equation.params
        if equation.primitive.name == "conv_general_dilated":
            shape, params = with_real_borders(shape, params)
        total += times * flops_by_xla(
            equation.primitive, ((shape, left.dtype), (right.shape, right.dtype)), **_hashable(params)
        )
    return total


def _hashable(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}


NOT_BY_MATMUL = {"branches", "explicit", "ragged"}
"""Programs of which JAX's own matmuls don't tell what runs: one branch of several, parts on ranks, ragged matmuls."""


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - NOT_BY_MATMUL))
def test_matmuls_and_convolutions_are_those_that_xla_counts_one_by_one(name: str) -> None:
    assert graph(name).flops() == counted_by_xla(PROGRAMS[name]())


@pytest.mark.parametrize("name", ["adam", "dlrm", "nnx"])
def test_all_flops_are_those_that_xla_counts_where_there_are_no_loops(name: str) -> None:
    xlas = xla_cost(PROGRAMS[name]())
    ours = graph(name).flops() + graph(name).flops("vector")
    assert ours == pytest.approx(xlas["flops"] + xlas["transcendentals"], rel=0.02)


@pytest.mark.parametrize("name", ["adam", "dlrm", "nnx", "resnet", "unet"])
def test_bytes_of_unfused_ops_are_near_xlas_where_there_are_no_loops(name: str) -> None:
    xlas = xla_cost(PROGRAMS[name]())
    ours = sum(times * graph(name).traffic(op) for times, op in graph(name).walk())
    assert ours == pytest.approx(xlas["bytes accessed"], rel=0.12)


PUBLISHED: Mapping[str, tuple[Callable[[], Program], int]] = {
    # torchvision.models: resnet50 and vit_b_16, "num_params"
    "ResNet-50": (partial(resnet, batch=1, image=224, width=64, stages=(3, 4, 6, 3), classes=1000), 25_557_032),
    "ViT-B/16": (
        partial(vit, batch=1, image=224, patch=16, layers=12, embed=768, heads=12, mlp=3072, classes=1000),
        86_567_656,
    ),
    # Hugging Face's google-t5/t5-small, state-spaces/mamba-130m-hf and mistralai/Mixtral-8x7B-v0.1
    "T5-small": (partial(t5, batch=1, layers=6, embed=512, heads=8, head=64, mlp=2048, vocab=32128), 60_506_624),
    "Mamba-130M": (partial(mamba, batch=1, layers=24, embed=768, state=16, vocab=50280), 129_135_360),
    "Mixtral-8x7B": (
        partial(mixtral, layers=32, embed=4096, kv_heads=8, q_per_kv=4, mlp=14336, n_experts=8, vocab=32000),
        46_702_792_704,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_parameters(name: str) -> None:
    program, parameters = PUBLISHED[name]
    assert trace(program()).parameter_count() == parameters


@pytest.mark.parametrize(("name", "giga"), [("ResNet-50", 4.09), ("ViT-B/16", 17.56)])
def test_published_image_models_have_their_published_multiply_adds(name: str, giga: float) -> None:
    """torchvision.models, "GFLOPS", which counts a multiply-add once."""
    published = trace(PUBLISHED[name][0]())
    assert published.flops(phases=("forward",)) / 2e9 == pytest.approx(giga, abs=0.005)


def test_a_step_of_resnet_is_three_forward_passes_but_for_the_gradient_of_its_images() -> None:
    resnet50 = trace(PUBLISHED["ResNet-50"][0]())
    stem = 2 * 112 * 112 * 7 * 7 * 3 * 64
    assert resnet50.flops() == 3 * resnet50.flops(phases=("forward",)) - stem


def test_t5_is_its_weights_times_its_tokens_and_its_scores() -> None:
    L, D, H, F, V, S, T = 6, 512, 8 * 64, 2048, 32128, 512, 114
    small = trace(t5(batch=1, inputs=S, targets=T, layers=L, embed=D, heads=8, head=64, mlp=F, vocab=V))
    encoder = L * (S * (4 * D * H + 2 * D * F) + 2 * S * S * H)
    decoder = L * (T * (6 * D * H + 2 * D * F) + S * 2 * D * H + 2 * T * T * H + 2 * T * S * H)
    assert small.flops(phases=("forward",)) == 2 * (encoder + decoder + T * D * V)
    assert small.flops() == 3 * small.flops(phases=("forward",))


def test_a_dropless_mixture_counts_each_token_with_its_own_experts() -> None:
    tokens, layers, D, F, E, top_k = 4 * 8, 2, 16, 32, 4, 2
    assert graph("ragged").flops() == 3 * layers * tokens * 2 * (D * E + top_k * 3 * D * F)


def test_a_branch_counts_as_the_one_that_does_most() -> None:
    B, layers, D, F = 4, 3, 32, 64
    assert graph("branches").flops() == 3 * (layers * 2 * (2 * B * D * F) + 2 * B * D * F)


B, S, D, F, LAYERS = 4, 8, 16, 32, 2 * 3
UP, SCORES = 2 * B * S * D * F, 2 * B * S * S * F


@pytest.mark.parametrize(
    ("policy", "recomputed"),
    [
        ("nothing_saveable", UP + 2 * SCORES),  # the last matmul's result is needed by nothing
        ("dots_saveable", 0),
        ("dots_with_no_batch_dims_saveable", 2 * SCORES),
        ("save_only_these_names", 2 * SCORES),
    ],
)
def test_each_policy_recomputes_what_it_does_not_save(policy: str, recomputed: float) -> None:
    traced = graph(f"remat {policy}")
    assert traced.flops(phases=("recompute",)) == LAYERS * recomputed
    assert traced.model_flops() == 3 * LAYERS * (2 * UP + 2 * SCORES)


# -- operations by themselves -------------------------------------------------------------------------------------


def alone(fn: Callable[..., Any], *shapes: tuple[int, ...], axes: Sequence[Any] | None = None) -> Graph:
    arguments = tuple(
        Argument(
            name=f"x{i}",
            role="parameters",
            tree=jax.ShapeDtypeStruct(shape, "float32"),
            axes=axes[i] if axes else (None,) * len(shape),
        )
        for i, shape in enumerate(shapes)
    )
    return trace(Program(name="alone", fn=fn, arguments=arguments))


N, M = 12, 8


@pytest.mark.parametrize(
    ("fn", "shape", "flops"),
    [
        (jax.lax.cumsum, (N, M), N * M * math.log2(N)),
        (jax.numpy.fft.fft, (M, N), 5 * M * N * math.log2(N)),
        (jax.numpy.fft.rfft, (M, N), 2.5 * M * N * math.log2(N)),
        (jax.lax.linalg.lu, (3, N, N), 3 * 2 / 3 * N**3),
        (partial(jax.lax.linalg.cholesky, symmetrize_input=False), (3, N, N), 3 * N**3 / 3),
        (lambda a: jax.lax.linalg.triangular_solve(a, a), (N, N), N**3),
        (lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3), (1, 1), "VALID"), (N, M), (N - 2) * (M - 2) * 9),
        (jax.scipy.special.erf, (N, M), N * M),
    ],
)
def test_other_operations_cost_what_the_textbook_says(fn: Any, shape: tuple[int, ...], flops: float) -> None:
    heavy = ("reduce_window", "fft", "LuDecomposition", "cholesky", "triangular_solve", "chlo.erf")
    found = alone(fn, shape)
    assert sum(w.flops for _, op in found.walk() if op.kind in heavy for w in op.work) == pytest.approx(flops)


def test_arrays_without_elements_and_complex_constants_trace() -> None:
    assert alone(lambda x: jax.lax.associative_scan(jax.numpy.add, x), (N,)).flops("vector") > 0
    assert alone(lambda x: (x * 1j).real, (N,)).flops("vector") > 0


# -- sharding -----------------------------------------------------------------------------------------------------


def moved(name: str, *, batch: int | None = None, **axes: Any) -> dict[str, float]:
    """Bytes per step and rank by kind of collective, with the traced batch spread over the ranks."""
    batch = batch or graph(name).size("batch")
    layout = Layout(**{"zero": 0, "sp": False, "global_batch": batch, **axes})
    layout = Layout(**{**axes, "zero": layout.zero, "sp": False, "global_batch": batch, "mb": batch // layout.data})
    found: defaultdict[str, float] = defaultdict(float)
    for each in derived(graph(name), layout):
        if each.bytes:
            found[each.kind] += each.times * each.bytes
    return dict(found)


def parameters(name: str) -> Iterator[tuple[float, list[str | None]]]:
    """(bytes, axis names) of each array of weights."""
    traced = graph(name)
    for each in traced.parameters:
        if each.role == "parameters":
            yield traced.bytes(each.value), [traced.factors[f].name for d in traced.values[each.value].dims for f in d]


T5_BIASES = F32 * 4 * (24 * 24 + 16 * 16 - 2 * 32)
"""T5 sums gradients of its biases over the batch for each pair of positions, then adds them to the tables' 32 rows."""
CHANNELS = 2512
BESIDES_GRADIENTS: Mapping[str, float] = {
    "branches": -F32 * 3,  # numbers that only choose a branch have no gradient
    "deepseek": -F32 * 2 * 8,  # nor have the numbers that balance the experts
    "resnet": F32 * 4 * CHANNELS,  # mean and variance, to normalise and to remember, and what flows back into each
    "t5": T5_BIASES,
}
LOSS = F32


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - {"explicit", "ragged"}))
def test_data_parallel_reduces_each_gradient_once(name: str) -> None:
    gradients = sum(size for size, _ in parameters(name))
    assert moved(name, dp=2) == {"all_reduce": gradients + LOSS + BESIDES_GRADIENTS.get(name, 0.0)}


@pytest.mark.parametrize("name", ["deepseek", "mamba", "mixtral", "remat nothing_saveable", "t5", "vit"])
def test_fsdp_gathers_weights_and_scatters_gradients(name: str) -> None:
    """Matrices of scanned layers are gathered forward and backward; what has no `embed` dim is whole on every rank.

    Scales and biases are gathered once: backward needs no bias, and finds the scales among what forward has kept.
    """
    sharded = [(size, names) for size, names in parameters(name) if "embed" in names]
    again = [size for size, names in sharded if "layers" in names and len(names) > 2]
    kept = sum(size for size, names in parameters(name) if "embed" not in names)
    assert moved(name, fsdp=2, zero=3) == {
        "all_gather": sum(size for size, _ in sharded) + sum(again),
        "reduce_scatter": sum(size for size, _ in sharded),
        "all_reduce": kept + LOSS + BESIDES_GRADIENTS.get(name, 0.0),
    }


def test_fsdp_gathers_what_is_recomputed_twice() -> None:
    """All but the last bias of a layer, of which the backward pass needs nothing."""
    layers, embed = 3, 32
    sharded = [(size, names) for size, names in parameters("linen") if "embed" in names]
    again = sum(size for size, names in sharded if "layers" in names) - F32 * layers * embed
    assert moved("linen", fsdp=2, zero=3)["all_gather"] == sum(size for size, _ in sharded) + again


def test_adam_under_fsdp_moves_bf16_weights_and_gradients_and_one_norm() -> None:
    size = 2 * 2 * 16 * 64
    assert moved("adam", fsdp=2, zero=3) == {"all_gather": size, "reduce_scatter": size, "all_reduce": LOSS + F32}


def test_tensor_parallel_t5_reduces_behind_each_matmul_back_to_embed() -> None:
    batch, inputs, targets, embed, layers = 4, 24, 16, 32, 2
    source, target = (F32 * batch * length * embed for length in (inputs, targets))
    forward = (2 * layers + 1) * source + (3 * layers + 1) * target  # + the embeddings, split by vocabulary
    backward = (2 + 2) * layers * source + (3 * layers + 1) * target  # + what was encoded; the head
    statistics = 3 * F32 * batch * targets  # the largest logit, the sum of the exponentials, the label's logit
    assert moved("t5", tp=2) == {"all_reduce": forward + backward + statistics}


def test_tensor_parallel_mixtral_reduces_tokens_and_what_experts_return() -> None:
    """What experts return is reduced slot by slot, since the gates' gradient needs it whole; not again as tokens."""
    batch, seq, embed, layers, experts, capacity = 4, 16, 32, 2, 4, 2 * 16 * 2 // 4
    tokens, slots = F32 * batch * seq * embed, F32 * experts * batch * capacity * embed
    statistics = 3 * F32 * batch * seq
    assert moved("mixtral", tp=2) == {"all_reduce": layers * (3 * tokens + slots) + 2 * tokens + statistics}


def test_context_parallel_attention_gathers_keys_and_values_and_scatters_their_gradients() -> None:
    """Op by op, with more queries than keys; besides, the router counts tokens along the whole sequence."""
    batch, seq, layers, kv_heads, head, experts, i32 = 4, 16, 2, 2, 8, 4, 4
    keys, chosen = F32 * batch * seq * kv_heads * head, i32 * batch * seq * experts
    found = moved("mixtral", cp=2)
    assert found["all_gather"] == layers * (4 * keys + chosen)
    assert found["reduce_scatter"] == layers * 2 * keys
    assert "all_to_all" not in found


def test_scores_of_as_many_queries_as_keys_are_spread_along_queries_so_that_softmax_is_local() -> None:
    batch, seq, layers, heads, head, rotary = 4, 16, 2, 4, 8, 4
    keys, values = (F32 * batch * seq * heads * size for size in (head + rotary, head))
    found = moved("deepseek", cp=2)
    assert found["all_gather"] == layers * (2 * (keys + values) + F32 * batch * seq * 8)
    assert "all_to_all" not in found


def test_tensor_parallel_mamba_reduces_tokens_and_what_selects() -> None:
    batch, seq, embed, layers, rank, state = 4, 16, 32, 2, 2, 4
    tokens, selection = F32 * batch * seq * embed, F32 * batch * seq * (rank + 2 * state)
    statistics = 3 * F32 * batch * seq
    assert moved("mamba", tp=2) == {"all_reduce": 2 * layers * (tokens + selection) + 2 * tokens + statistics}


def test_tables_split_by_rows_reduce_each_bag() -> None:
    batch, tables, embed = 16, 3, 16
    assert moved("dlrm", tp=2) == {"all_reduce": F32 * tables * batch * embed}


def test_collectives_written_out_are_counted_as_they_stand() -> None:
    batch, seq, embed, mlp, ways = 8, 16, 32, 64, 2
    tokens, weights = F32 * batch // ways**2 * seq * embed, F32 * (2 * embed * mlp + 2 * embed * embed) // ways
    norms = F32 * batch // ways**2 * embed
    assert moved("explicit", batch=batch, dp=ways, fsdp=ways, tp=ways, zero=3) == {
        "all_gather": weights + 2 * tokens,  # forward, and the gradient of what was scattered
        "reduce_scatter": weights + tokens,
        "all_to_all": 4 * tokens // ways,
        "collective_permute": 2 * ways * norms,
        "all_reduce": weights + LOSS,  # over dp, which JAX sums before it scatters over fsdp
    }
