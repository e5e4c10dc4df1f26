"""Axis names by pattern, and those proposed for programs that have none."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache

import pytest
import unannotated
from partitioner import derived
from programs import mlp_graph, mlp_program
from unannotated import BATCH, EMBED, LAYERS, SEQ

from perfmodel.cli.main import main
from perfmodel.errors import AxisNameError, TraceError
from perfmodel.graph import Graph
from perfmodel.layout import Layout
from perfmodel.models import load_program
from perfmodel.propose import propose
from perfmodel.trace import Program, named, read_mesh_axes, read_names, trace
from perfmodel.trace.leaves import leaves_of

BF16 = 2


@cache
def decoder(scanned: bool = True) -> Graph:
    return trace(unannotated.decoder(scanned=scanned))


def names_of(program: Program) -> dict[str, str | None]:
    """Names of the dims of a program's arguments, by their paths."""
    leaves = (leaf for argument in program.arguments for leaf in leaves_of(argument))
    return {f"{leaf.path}.{d}": name for leaf in leaves for d, name in enumerate(leaf.axes)}


def test_a_factor_is_called_by_the_argument_it_comes_from() -> None:
    origins = {factor.origin for factor in decoder().factors}
    assert {"params.embedding.0", "params.layers.down.1", "params.layers.k.2/0", "tokens.0"} <= origins


def test_patterns_name_dims_and_the_last_one_counts() -> None:
    names = names_of(named(unannotated.decoder(), {"params.layers.*": "embed", "params.layers.down.1": "mlp"}))
    assert names["params.layers.down.1"] == "mlp"
    assert names["params.layers.k.2"] == "embed"
    assert names["params.embedding.0"] is None


def test_a_name_holds_wherever_the_dim_goes() -> None:
    graph = trace(named(unannotated.decoder(), {"params.layers.down.1": "mlp", "params.layers.k.2/0": "heads"}))
    factors = {factor.name: factor for factor in graph.factors if factor.name}
    assert (factors["mlp"].size, factors["heads"].size) == (unannotated.MLP, unannotated.HEADS)


def test_a_pattern_renames_what_has_a_name() -> None:
    graph = trace(named(mlp_program(), {"*.up.2": "ffn", "*.down.1": "ffn"}))
    assert "ffn" in graph.named()
    assert "mlp" not in graph.named()


def test_naming_the_batch_tells_how_many_sequences_a_step_takes() -> None:
    assert decoder().global_batch == 1
    assert trace(named(unannotated.decoder(), {"tokens.0": "batch"})).global_batch == BATCH


def test_a_pattern_that_matches_nothing_is_an_error_that_says_what_is_near() -> None:
    with pytest.raises(AxisNameError, match=r"'params.layers.dwn.1'.*did you mean params.layers.down.1\?"):
        named(unannotated.decoder(), {"params.layers.dwn.1": "mlp"})


@pytest.mark.parametrize("text", ["mlp", "=mlp", "a=", " = "])
def test_what_is_not_a_pattern_and_a_name_is_an_error(text: str) -> None:
    with pytest.raises(AxisNameError, match="expected PATTERN=NAME"):
        read_names([text])


def test_axes_of_the_programs_own_mesh_are_told_in_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_mesh_axes(["data = dp, fsdp", "replica="]) == {"data": ("dp", "fsdp"), "replica": ()}
    program = load_program("unannotated:constrained", mesh_axes=["data=dp"])
    assert [op.pinned[0][1] for _, op in trace(program).walk() if op.kind == "sharding_constraint"] == [("dp",)]
    assert main(["trace", "unannotated:constrained"]) == 2
    assert "--mesh-axis data=dp" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["data", "=dp", "data=dq"])
def test_other_texts_about_mesh_axes_are_errors(text: str) -> None:
    with pytest.raises(AxisNameError, match=rf"got '{text}', expected AXIS= and some of tp, cp"):
        read_mesh_axes([text])


def test_a_mesh_axis_stands_for_one_thing() -> None:
    assert read_mesh_axes(["data=dp", "data = dp"]) == {"data": ("dp",)}
    with pytest.raises(AxisNameError, match="got 'data' for dp and nothing, expected one: drop one"):
        read_mesh_axes(["data=dp", "data="])


@pytest.mark.parametrize(
    ("mesh_axes", "message"),
    [
        (["data=dp", "dta=tp"], r"got 'dta', expected an axis of the program's own mesh \(data\): did you mean data\?"),
        (["data=dp", "model=tp"], r"got 'model', .*: leave it out"),
    ],
)
def test_an_axis_that_no_mesh_of_the_program_has_is_an_error(mesh_axes: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(load_program("unannotated:constrained", mesh_axes=mesh_axes))


@pytest.mark.parametrize("mesh_axes", [["data=tp"], ["data=dp,tp"]])
def test_two_axes_of_one_mesh_cannot_stand_for_one_axis_of_a_layout(mesh_axes: list[str]) -> None:
    """What is split over one of the two has fewer parts than that axis has ranks."""
    program = load_program("unannotated:twice", mesh_axes=mesh_axes)
    with pytest.raises(TraceError, match="got tp for both 'data' and 'tp', expected an axis of its own for each"):
        trace(program)
    assert trace(load_program("unannotated:twice", mesh_axes=["data="])).nodes


def test_texts_are_read_as_patterns_and_names() -> None:
    assert read_names(["*.kernel.1 = mlp", "x[=]*=batch"]) == {"*.kernel.1": "mlp", "x[=]*": "batch"}
    with pytest.raises(AxisNameError, match="'a' for b and c"):
        read_names(["a=b", "a=c"])


@pytest.mark.parametrize("scanned", [True, False])
def test_the_proposal_for_a_decoder_is_megatrons(scanned: bool) -> None:
    """Heads, inner width and vocabulary over tp; the residual stream's width stored sharded."""
    graph = decoder(scanned)
    by_size = defaultdict(set)
    sizes = {factor.origin: factor.size for factor in graph.factors}
    for pattern, name in propose(graph).items():
        by_size[name].add(sizes[pattern])
    assert by_size.pop("layers", {LAYERS}) == {LAYERS}
    expected = {"mlp": {unannotated.HEADS, unannotated.MLP, unannotated.VOCAB}, "embed": {EMBED}}
    assert by_size == expected | {"batch": {BATCH}, "seq": {SEQ}}


def test_under_the_proposal_tensor_parallelism_moves_what_megatrons_does() -> None:
    graph = trace(named(unannotated.decoder(), propose(decoder())))
    found = derived(graph, Layout(tp=2, mb=BATCH, global_batch=BATCH, zero=0, sp=False))
    size = BF16 * BATCH * SEQ * EMBED
    moved: defaultdict[tuple[str, str], float] = defaultdict(float)
    for each in found:
        if each.bytes >= size:
            moved[each.kind, each.name] += each.times * each.bytes
    assert moved == {("all_reduce", "forward"): 2 * LAYERS * size, ("all_reduce", "backward"): (2 * LAYERS + 1) * size}


def test_a_chain_of_matmuls_is_divided_everywhere_with_no_two_factors_in_one_matmul() -> None:
    proposed = propose(trace(unannotated.mlp()))
    assert proposed["x.0"] == "batch"
    wide = {pattern for pattern, name in proposed.items() if name == "mlp"}
    graph = trace(named(unannotated.mlp(), proposed))
    for _, op in graph.walk():
        if op.kind == "dot_general":
            names = [graph.factors[factor].name for factor in op.local]
            assert names.count("mlp") == 1
    assert wide


def test_nothing_is_proposed_for_a_program_with_names() -> None:
    assert propose(mlp_graph()) == {}


# -- commands -----------------------------------------------------------------------------------------------------

MODEL = "unannotated:decoder"
ESTIMATE = ("estimate", MODEL, "--machine", "h100", "--chips", "8", "--layout", "dp=2,tp=4,mb=2,sp=0")


def test_trace_lists_the_dims_and_proposes_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", MODEL]) == 0
    shown = capsys.readouterr().out
    assert "--assign 'params.layers.down.1=mlp'" in shown
    assert main(["trace", MODEL, "--json", "--assign", "auto"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proposed"] == {}
    assert {row["name"] for row in found["factors"]} >= {"batch", "seq", "layers", "mlp", "embed"}


def test_names_may_be_given_or_taken_from_the_proposal(capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for pattern, name in propose(decoder()).items() for word in ("--assign", f"{pattern}={name}")]
    times = []
    for names in (("--assign", "auto"), given):
        assert main([*ESTIMATE, "--json", *names]) == 0
        times.append(json.loads(capsys.readouterr().out)["step_time_s"])
    assert times[0] == times[1]


def test_a_given_name_comes_before_a_proposed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", MODEL, "--json", "--assign", "params.*.down.1=experts", "--assign", "auto"]) == 0
    sizes = {row["name"]: row["size"] for row in json.loads(capsys.readouterr().out)["factors"]}
    assert sizes["experts"] == unannotated.MLP


def test_without_names_an_estimate_says_how_to_give_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(ESTIMATE)) == 2
    assert "--assign auto" in capsys.readouterr().err


def test_tune_takes_the_proposal_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune", MODEL, "--machine", "h100", "--chips", "8", "--global-batch", "64", "--storage", "none")
    assert main([*words, "--json", "--top", "1"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["feasible"] > 0
    assert "taking --assign tokens.0=batch" in captured.err
