"""Fits of machines to measurements: what is put in comes out, published tables are met by rows left out."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from machines import raw_numbers

from perfmodel import MachineError, calibrate, load_machine
from perfmodel.calibrate.calibration import TOLD, Value
from perfmodel.calibrate.fit import fit
from perfmodel.calibrate.model import predicted
from perfmodel.calibrate.parameters import parameters, rounded, with_values
from perfmodel.calibrate.problem import Problem
from perfmodel.calibrate.rows import Attention, Collective, Gemm, Row, read_rows
from perfmodel.catalog import read_calibration, read_machine
from perfmodel.cli.main import main
from perfmodel.machine import Machine
from perfmodel.machine_file import variations
from perfmodel.spec_file import parse_calibration, parse_machine
from perfmodel.work import Floats

TABLES = Path(str(resources.files("hardware_specs"))) / "measurements"
MIB = 2**20
SQUARES = [(4096 * i, 4096 * i, k) for i in (2, 4) for k in (256, 1024, 8192)]

COLUMNS = (
    "hardware op group_size nodes devices_per_node size_bytes time_us dtype m n "
    "k batch seq heads head_dim causal shape source notes kind"
)


def write(path: Path, rows: list[Mapping[str, object]], columns: str = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns.split())
        table.writeheader()
        table.writerows(rows)
    return path


def own(folder: Path, changes: Callable[[str], str] = lambda text: text) -> Path:
    """A copy of the H100 with its calibration, to be changed."""
    files = resources.files("hardware_specs")
    (folder / "own.toml").write_text((files / "h100.toml").read_text())
    calibration = (files / "calibrations" / "h100.toml").read_text()
    (folder / "own.calibration.toml").write_text(changes(calibration))
    return folder / "own.toml"


def made(machine: Path, noise: float = 0.0) -> list[Mapping[str, object]]:
    """Rows that a machine predicts of itself, with an error that depends on the row."""
    rows: list[Mapping[str, object]] = []
    for kind in ("all_gather", "all_to_all"):
        for ranks, nodes in ((2, 1), (8, 1), (32, 4), (128, 16)):
            for size in (2**20, 2**24, 2**28, 2**30):
                rows.append({"op": kind, "group_size": ranks, "nodes": nodes, "size_bytes": size})
    for m, n, k in (
        (512, 4096, 4096),
        (4096, 4096, 4096),
        (8192, 8192, 1024),
        (300, 5000, 700),
        (8192, 1024, 16384),
        *SQUARES,
    ):
        rows.append({"op": "gemm", "dtype": "bf16", "m": m, "n": n, "k": k})
    for seq in (1024, 4096, 16384):
        sizes = {"batch": 1, "seq": seq, "heads": 32, "head_dim": 128}
        rows.append({"op": "attention", "dtype": "bf16", "causal": "1", **sizes})
    table = write(machine.parent / "made.csv", [{"hardware": "mine", "time_us": 1, **row} for row in rows])
    read, skipped = read_rows(table, "mine")
    assert not skipped
    seconds = predicted(read, load_machine(machine), {row.source: 5e-6 for row in read})
    wobble = np.exp(noise * np.sin(np.arange(len(rows)) * 1.7))
    times = seconds * wobble * 1e6
    return [{"hardware": "mine", "source": "made", **r, "time_us": t} for r, t in zip(rows, times, strict=True)]


# -- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in TABLES.glob("*-*.csv")))
def test_no_row_of_a_table_is_dropped_silently(name: str) -> None:
    rows, skipped = read_rows(TABLES / name, "trn2|H100|TPU")
    with (TABLES / name).open() as file:
        assert len(rows) + len(skipped) == len(list(csv.DictReader(file)))
    assert rows
    assert all(row.seconds > 0 for row in rows)
    assert all(left_out.reason for left_out in skipped)


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (
            {"op": "all_reduce", "group_size": 64, "nodes": 1, "size_bytes": 1e6},
            Collective(kind="all_reduce", ranks=64, nodes=1, bytes=1e6),
        ),
        (
            {"op": "alltoall", "n_devices": 16, "devices_per_node": 8, "size_bytes": 8},
            Collective(kind="all_to_all", ranks=16, nodes=2, bytes=8),
        ),
        (
            {"kernel": "gemm compiled", "dtype": "bf16", "shape": "1024x4096x2048 (MxKxN)"},
            Gemm(dtype="bf16", m=1024, n=2048, k=4096),
        ),
        ({"op": "matmul", "dtype": "fp32", "shape": "M=10 K=20 N=30"}, Gemm(dtype="f32", m=10, n=30, k=20)),
        ({"op": "gemm", "dtype": "fp8", "m": 1, "n": 2, "k": 3.0}, Gemm(dtype="f8", m=1, n=2, k=3)),
        (
            {"op": "gemm", "dtype": "bf16", "m": 1, "n": 2, "k": 3, "batch": 4},
            Gemm(dtype="bf16", m=1, n=2, k=3, batch=4),
        ),
        (
            {"kernel": "flash attention", "dtype": "bf16", "shape": "B4 q_len 4096 heads GQA 80/8 head_dim 128 causal"},
            Attention(dtype="bf16", batch=4, seq=4096, heads=80, head_dim=128),
        ),
        (
            {"op": "attention", "batch": 2, "seq": 64, "heads": 8, "head_dim": 32, "causal": "1"},
            Attention(dtype="bf16", batch=2, seq=64, heads=8, head_dim=32),
        ),
    ],
)
def test_a_row_is_read_by_its_columns_or_from_the_text_of_its_shape(
    cells: Mapping[str, object], what: object, tmp_path: Path
) -> None:
    row = {"hardware": "it", "time_us": 7, **cells}
    (read,), _ = read_rows(write(tmp_path / "t.csv", [row], " ".join(row)), "it")
    assert read.what == what
    assert read.seconds == pytest.approx(7e-6)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"hardware": "that"}, "other hardware"),
        ({"op": "cast"}, "'cast' is neither a collective nor a matmul nor attention"),
        *(
            ({name: text}, f"{name}: got {text or 'nothing'}, expected a number from {least} to {most}")
            for name, least, most in (("size_bytes", "1", "1e+15"), ("time_us", "0.001", "1e+12"))
            for text in ("", "fast", "nan", "inf", "-inf", "0", "-1")
        ),
        *(
            ({**cells, name: text}, f"{name}: got {text or 'nothing'}, expected a whole number from 1 to 1e+09")
            for cells, names in (
                ({}, ["group_size"]),
                ({"op": "gemm", "dtype": "bf16", "m": 1, "n": 1, "k": 1}, "mnk"),
                (
                    {"op": "attention", "causal": "1", "batch": 1, "seq": 8, "heads": 2, "head_dim": 4},
                    ["batch", "heads", "head_dim"],
                ),
            )
            for name in names
            for text in ("", "abc", "nan", "inf", "0", "-8", "8.5")
        ),
        ({"nodes": "two"}, "nodes: got two, expected a whole number from 1 to 1e+09"),
        ({"nodes": 16}, "nodes: got 16, expected a divisor of the 8 ranks: as many on each server"),
        ({"nodes": 3}, "nodes: got 3, expected a divisor of the 8 ranks: as many on each server"),
        ({"devices_per_node": 5}, "devices_per_node: got 5, expected a divisor of the 8 ranks: as many on each server"),
        ({"group_size": 1}, "group_size: got 1, expected at least 2 ranks, that have something to send"),
        (
            {"op": "matmul", "dtype": "bf16", "shape": "0x8x8"},
            "m: got 0, expected a whole number from 1 to 1e+09",
        ),
        ({"notes": "SUSPECT: an empty graph"}, "the table's note calls it suspect"),
        ({"op": "gemm", "dtype": "int4", "m": 1, "n": 1, "k": 1}, "element type 'int4'"),
        ({"op": "gemm", "dtype": "bf16"}, "no sizes of a matmul in ''"),
        ({"kind": "dreamt"}, "kind: got dreamt, expected measured or derived"),
        ({"op": "attention", "seq": 8, "causal": "0"}, "not a forward pass of causal attention"),
    ],
)
def test_a_row_that_is_left_out_says_why(cells: Mapping[str, object], reason: str, tmp_path: Path) -> None:
    row = {"hardware": "this", "op": "all_reduce", "group_size": 8, "size_bytes": 9, "time_us": 7, **cells}
    rows, (skipped,) = read_rows(write(tmp_path / "t.csv", [row]), "this")
    assert (rows, skipped.id, skipped.reason) == ([], "t.csv:2", reason)


def test_a_row_with_more_cells_than_columns_is_left_out(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "hardware,op,time_us,group_size,size_bytes\nit,all_reduce,1,000,8,4096\n\nit,all_reduce,7,8,4096\n"
    )
    (row,), (skipped,) = read_rows(table, "it")
    assert skipped.reason == "row: got 4096 beyond the last column, expected a cell for each column"
    assert (skipped.id, row.id) == ("t.csv:2", "t.csv:4")


def test_a_table_that_a_spreadsheet_wrote_may_begin_with_a_mark(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("hardware,op,time_us,group_size,size_bytes\nit,all_reduce,7,8,4096\n", encoding="utf-8-sig")
    rows, skipped = read_rows(table, "it")
    assert (len(rows), skipped) == (1, [])


def test_a_batch_of_large_matmuls_takes_as_long_as_its_matmuls() -> None:
    one, eight = (Gemm(dtype="bf16", m=8192, n=8192, k=8192, batch=batch) for batch in (1, 8))
    rows = [Row(id="", what=what, seconds=1.0, source="a", hardware="mine") for what in (one, eight)]
    alone, together = predicted(rows, load_machine("tpu-v5e"), {})
    assert together == pytest.approx(8.0 * alone)


def test_what_the_compiler_expects_of_matmuls_is_what_was_measured_of_them() -> None:
    """Of large ones, which a harness adds little to: the same shapes on the same TPU."""
    expected, measured = (
        {row.what: row.seconds for row in read_rows(TABLES / f"{name}-kernels.csv", "TPU7x")[0]}
        for name in ("tpu", "gpu")
    )
    both = [what for what in measured if what in expected and isinstance(what, Gemm) and what.m >= 4096]
    assert len(both) == 2
    for what in both:
        assert expected[what] == pytest.approx(measured[what], rel=0.05)


# -- fits ---------------------------------------------------------------------------------------------------------


def test_numbers_that_made_a_table_are_found_again_from_a_wrong_start(tmp_path: Path) -> None:
    machine = own(tmp_path)
    table = write(tmp_path / "table.csv", made(machine))
    truth = {path: number.value for path, number in load_machine(machine).facts.items()}
    (tmp_path / "own.calibration.toml").write_text(
        (tmp_path / "own.calibration.toml")
        .read_text()
        .replace(
            "[efficiency]\ntensor = { value = ",
            '[efficiency]\ntensor = { value = 0.4, unit = "1", kind = "assumed", source = "a wrong start" } # ',
        )
    )
    found = calibrate([table], machine, hardware="mine")
    assert found.values["efficiency.tensor"].before == 0.4
    assert found.values["efficiency.tensor"].after == pytest.approx(truth["calibration.efficiency.tensor"], rel=0.05)
    assert found.errors["all"][1].p90 < 0.01
    assert found.launches["made: gemm"] == pytest.approx(5e-6, rel=0.3)


def test_a_machine_with_other_numbers_is_the_machine_of_a_file_that_has_them() -> None:
    where, data = read_machine("h100")
    spec = parse_machine(data, where)
    found = read_calibration("h100")
    assert found
    free = parameters(found[1])
    values = [0.9 * parameter.start for parameter in free]
    written = parse_calibration(with_values(found[1], free, values), "file", spec)
    varied = variations(spec, parse_calibration(found[1], "file", spec))(
        dict(zip((parameter.path for parameter in free), values, strict=True))
    )
    expected = variations(spec, written)({})
    assert varied.tiers != load_machine("h100").tiers
    assert flat(varied) == pytest.approx(flat(expected), rel=1e-12)


def flat(machine: Machine) -> list[float]:
    """What a calibration sets, in one order."""
    algorithms = [algorithm for tier in machine.tiers for algorithm in tier.algorithms]
    numbers = [[a.base, a.copy, a.latency, *a.efficiency.values(), *chain.from_iterable(a.curve)] for a in algorithms]
    matrix = machine.matrix
    own = [*machine.efficiency.values(), matrix.fill, matrix.operands, matrix.query_keys, *matrix.shares.values()]
    return [*own, *chain.from_iterable(numbers)]


def test_rows_left_out_are_met_less_well_than_rows_that_were_seen(tmp_path: Path) -> None:
    table = write(tmp_path / "table.csv", made(own(tmp_path), noise=0.2))
    before, after, left_out = calibrate([table], tmp_path / "own.toml", hardware="mine").errors["all"]
    assert after.median < left_out.median
    assert before.rows == after.rows == left_out.rows == 46


def test_a_row_is_never_seen_by_the_fit_that_predicts_it() -> None:
    """Of a mean of logarithms, what is left out moves away from what is seen."""
    measured = np.array([0.0, 0.0, 0.0, 0.4])

    def residuals(logs: Floats, which: object) -> Floats:
        return np.asarray(logs[0] - measured[np.asarray(which)])

    found = fit(residuals, np.zeros(1), np.zeros(1), -np.ones(1), np.ones(1), ["a", "a", "b", "c"], as_found)
    assert found.held_out[3] == pytest.approx(-0.4, abs=0.01)
    assert abs(found.after[3]) < 0.4


def as_found(logs: Floats, _: object) -> Floats:
    return logs


def test_numbers_that_can_stand_in_for_each_other_are_told_only_together() -> None:
    """Rows of a + b and of c, which lies beyond its bound."""
    noise = 0.05 * np.sin(np.arange(30.0))

    def residuals(logs: Floats, which: object) -> Floats:
        together, alone = np.full(30, logs[0] + logs[1] - 0.2), np.full(30, logs[2] - 5.0)
        return np.asarray((np.where(np.arange(30) % 2, together, alone) + noise)[np.asarray(which)])

    ends = -np.ones(3), np.ones(3)
    found = fit(residuals, np.zeros(3), np.zeros(3), *ends, [str(i) for i in range(30)], as_found)
    assert found.logs[:2].sum() == pytest.approx(0.2, abs=0.02)
    assert np.all(found.spread[:2] > TOLD)
    assert found.bound.tolist() == [False, False, True]
    values = [Value(before=1.0, after=1.0, spread=s, bound=b) for s, b in zip(found.spread, found.bound, strict=True)]
    assert [value.told for value in values] == [False, False, False]
    assert Value(before=1.0, after=1.0, spread=0.1, bound=False).told


def test_a_harness_of_which_no_row_was_seen_is_as_the_others(tmp_path: Path) -> None:
    what = Gemm(dtype="bf16", m=512, n=512, k=512)
    rows = [Row(id=s, what=what, seconds=1e-4, source=s, hardware="mine") for s in ("a", "b", "c")]
    data = read_machine(own(tmp_path))[1]
    found = read_calibration(own(tmp_path))
    assert found is not None
    problem = Problem(parse_machine(data, "file"), found[1], rows)
    count = len(problem.parameters)
    logs = np.concatenate([np.zeros(count), [1.0, 2.0, 9.0]])
    assert problem.completed(logs, [0, 1])[count:].tolist() == [1.0, 2.0, 1.5]
    assert problem.completed(logs, [0, 1, 2]) is logs


def test_what_a_datasheet_says_is_not_fitted_and_all_of_a_curve_but_its_end_is() -> None:
    found = read_calibration("h100")
    assert found is not None
    paths = {parameter.path for parameter in parameters(found[1])}
    assert "tiers.EFA.algorithms.flat_ring.latency" in paths
    assert "tiers.EFA.algorithms.flat_ring.inner" not in paths
    assert "pipeline_depth" in paths
    assert not any(" LL" in path for path in paths)
    assert sum(path.startswith("tiers.EFA.algorithms.flat_ring.curve") for path in paths) == 2


def test_rows_of_a_machine_are_those_of_its_instance_and_the_file_says_which() -> None:
    table = TABLES / "trainium-collectives.csv"
    found = calibrate([table], "trn1", smallest=2.0**20)
    assert {row.hardware for row in found.rows} >= {"trn1.32xlarge"}
    assert not any("trn1n" in row.hardware for row in found.rows)
    written = tomllib.loads(found.text())
    said = [written["fit"][key] for key in ("hardware", "smallest", "leave_out")]
    assert said == [r"\btrn1\b", 2.0**20, "point"]
    fitted = [number for number in raw_numbers(written) if number["source"].startswith("fit above")]
    assert written["fit"]["range"].startswith("collectives of 2 to 32 ranks")
    assert {number["kind"] for number in fitted} == {"measured", "assumed"}
    assert not any("note" in number for number in fitted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "machine", "hardware", "median", "p90"),
    [
        (("trainium-collectives.csv",), "trn2", "trn2", 0.10, 0.25),
        (("trainium-kernels.csv",), "trn2", "trn2", 0.12, 0.25),
        (("gpu-collectives.csv",), "h100", "H100", 0.10, 0.25),
    ],
)
def test_published_rows_that_were_left_out_are_met(
    tables: tuple[str, ...], machine: str, hardware: str, median: float, p90: float
) -> None:
    found = calibrate([TABLES / table for table in tables], machine, hardware=hardware, smallest=MIB)
    for kind, (_, after, left_out) in found.errors.items():
        if kind in ("gemm", "attention", "all"):
            assert left_out.median < median, kind
            assert left_out.p90 < p90, kind
        assert after.rows == left_out.rows > 5


@pytest.mark.slow
@pytest.mark.parametrize(("leave_out", "median"), [("ranks", 0.1), ("kind", 0.2)])
def test_collectives_of_a_number_of_ranks_never_seen_are_met_better_than_a_kind_never_seen(
    leave_out: str, median: float
) -> None:
    """What a kind reaches of the bandwidth is its own: left out, it is a guess."""
    found = calibrate([TABLES / "gpu-collectives.csv"], "h100", hardware="H100", smallest=MIB, leave_out=leave_out)
    assert found.errors["all"][2].median < median


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e"])
def test_a_tpu_is_fitted_to_what_its_compiler_expects_of_matmuls(name: str) -> None:
    found = calibrate([TABLES / "tpu-kernels.csv"], f"tpu-{name}", hardware=f"TPU {name}", keep=["efficiency.memory"])
    assert found.errors["gemm"][2].median < 0.04
    shipped = load_machine(f"tpu-{name}")
    assert found.values["efficiency.tensor"].after == pytest.approx(shipped.efficiency["tensor"], rel=0.02)
    assert found.values["efficiency.fill"].after == pytest.approx(shipped.matrix.fill, rel=0.1)


# -- files and shell ----------------------------------------------------------------------------------------------


def test_a_fitted_file_keeps_what_was_not_fitted_and_is_priced_by_its_new_numbers(tmp_path: Path) -> None:
    machine = own(tmp_path)
    table = write(tmp_path / "table.csv", made(machine))
    found = calibrate([table], machine, hardware="mine")
    found.write(tmp_path / "own.calibration.toml")
    again = load_machine(machine)
    assert again.efficiency["tensor"] == rounded(found.values["efficiency.tensor"].after)
    assert again.overlap == load_machine("h100").overlap
    assert "apart from what its datasheet says" in (tmp_path / "own.calibration.toml").read_text()
    fact = again.facts["calibration.efficiency.tensor"]
    assert (fact.kind, fact.source) == ("measured", "fit above")


def test_numbers_fitted_to_what_nobody_measured_say_so(tmp_path: Path) -> None:
    machine = own(tmp_path)
    rows = made(machine)
    foreign = [{**row, "source": "a vendor's model", "kind": "derived"} if row["op"] == "gemm" else row for row in rows]
    table = write(tmp_path / "table.csv", foreign)
    calibrate([table], machine, hardware="mine").write(tmp_path / "own.calibration.toml")
    again = load_machine(machine)
    count = sum(row["op"] == "gemm" for row in rows)
    source = f"fit to {count + 3} rows, {count} of them no measurements: a vendor's model"
    fact = again.facts["calibration.efficiency.tensor"]
    assert (fact.kind, fact.source) == ("derived", source)
    assert again.facts["calibration.tiers.EFA.algorithms.flat_ring.latency"].kind != "derived"
    (said,) = (text for text in again.assumptions if text.startswith("derived, not measured: efficiency.tensor "))
    assert said.endswith(f"({source})")


def test_numbers_that_are_kept_stay_as_they_are(tmp_path: Path) -> None:
    machine = own(tmp_path)
    table = write(tmp_path / "table.csv", made(machine, noise=0.1))
    found = calibrate([table], machine, hardware="mine", keep=["efficiency.tensor"])
    assert "efficiency.tensor" not in found.values
    assert "efficiency.fill" in found.values
    found.write(tmp_path / "own.calibration.toml")
    assert load_machine(machine).efficiency["tensor"] == load_machine("h100").efficiency["tensor"]
    assert 'keep = "efficiency.tensor"' in (tmp_path / "own.calibration.toml").read_text()
    with pytest.raises(MachineError, match=r"keep: got 'efficiency.tenor', expected one of efficiency.tensor, "):
        calibrate([table], machine, hardware="mine", keep=["efficiency.tenor"])


def test_a_tier_like_another_follows_the_fit_and_stays_assumed(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "trn2-ultraserver"\n')
    table = TABLES / "trainium-collectives.csv"
    calibrate([table], tmp_path / "own.toml", hardware="trn2", smallest=MIB).write(tmp_path / "own.calibration.toml")
    again = load_machine(tmp_path / "own.toml")
    _, plane, between, _ = again.tiers
    assert between.algorithms[0].efficiency == plane.algorithms[0].efficiency
    fact = again.facts[f"calibration.tiers.{between.name}.algorithms.recursive.all_gather"]
    assert (fact.kind, fact.source) == ("assumed", f"as {plane.name}")


def test_a_machine_without_calibration_gets_one(tmp_path: Path) -> None:
    machine = own(tmp_path)
    table = write(tmp_path / "table.csv", made(machine))
    (tmp_path / "own.calibration.toml").unlink()
    before = load_machine(machine)
    calibrate([table], machine, hardware="mine").write(tmp_path / "own.calibration.toml")
    after = load_machine(machine)
    assert before.efficiency["tensor"] == 1.0 > after.efficiency["tensor"]
    assert [a.name for a in after.tiers[0].algorithms] == ["ring", "recursive"]


def test_the_command_prints_errors_before_after_and_of_rows_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write(tmp_path / "table.csv", made(own(tmp_path), noise=0.1))
    out = tmp_path / "new.toml"
    words = ["calibrate", str(table), "--machine", str(tmp_path / "own.toml"), "--hardware", "mine", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["errors"]) == {"all_gather", "all_to_all", "gemm", "attention", "all"}
    assert found["errors"]["all"]["left_out"]["rows"] == len(found["rows"]) == 46
    assert out.exists()
    assert main(words) == 0
    assert "rows left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.csv", "--machine", "h100"], "absent.csv: got No such file or directory, expected a table (CSV)"),
        (["table.csv", "--machine", "h900"], "machine: got 'h900', expected one of"),
        (
            ["table.csv", "--machine", "h100", "--hardware", "("],
            "hardware: got '(' (missing ), unterminated subpattern",
        ),
        (["table.csv", "--machine", "h100"], r"table.csv: got no usable row for \bp5\b, expected measurements of"),
        (
            ["empty.csv", "--machine", "h100"],
            "empty.csv: got the columns none, expected one of op, kernel: name the col",
        ),
        (["latin.csv", "--machine", "h100"], "latin.csv: got 'utf-8' codec can't decode byte 0xe9 in position 0"),
        (
            ["table.csv", "--machine", "h100", "--smallest", "3 barrels"],
            "argument --smallest: got '3 barrels', expected bytes such as 4096 or 1MiB, in B, kB, MB, GB",
        ),
        (["bare.csv", "--machine", "h100"], "bare.csv: got the columns a, b, expected one of op, kernel: name the"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "table.csv", [{"hardware": "mine", "op": "all_reduce", "time_us": 1}])
    (tmp_path / "bare.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "latin.csv").write_bytes(b"\xe9")
    assert main(["calibrate", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"perfmodel: {message}")
    assert said.count("\n") == 1


def test_the_smallest_collective_has_a_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "table.csv", made(own(tmp_path)))
    words = ["calibrate", str(table), "--machine", str(tmp_path / "own.toml"), "--hardware", "mine", "--json"]
    assert main([*words, "--smallest", "16MiB"]) == 0
    skipped = json.loads(capsys.readouterr().out)["skipped"]
    assert [left_out["reason"] for left_out in skipped] == [f"smaller than {2**24:g} B"] * 8


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    table = write(tmp_path / "table.csv", made(own(tmp_path)))
    found = calibrate([table], tmp_path / "own.toml", hardware="mine")
    with pytest.raises(MachineError, match="expected to write a file: check the path"):
        found.write(tmp_path / "absent" / "x.toml")
