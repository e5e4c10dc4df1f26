"""A row as what is to be predicted: which program, under which layout, on which machine, against how many seconds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from perfmodel.allocation import check_chips
from perfmodel.errors import MachineError
from perfmodel.layout import Layout
from perfmodel.machine import Machine
from perfmodel.models import DecoderConfig
from perfmodel.models.precision import PRESETS, Precision
from perfmodel.validate.execution import execution_of
from perfmodel.validate.hardware import kind_of, machine_of, quoted_peak
from perfmodel.validate.measured import measured_seconds
from perfmodel.validate.program import config_of
from perfmodel.validate.rows import Row, RowError, check_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run that can be predicted.

    ideal:   the machine with every efficiency at 1
    peak:    of a rank, that MFU is quoted against [FLOP/s]
    differs: in words, what the prediction has otherwise than the run, as far as the row tells
    seconds: of a step, measured
    """

    row: Row
    config: DecoderConfig
    seq_len: int
    precision: Precision
    layout: Layout
    machine: Machine
    ideal: Machine
    peak: float
    differs: tuple[str, ...]
    seconds: float

    @property
    def program(self) -> Hashable:
        """Equal for runs of one traced program."""
        return self.config, self.seq_len, self.precision, self.layout.recompute

    @property
    def kind(self) -> str:
        """Class of the model, with the precision of its matmuls."""
        peak = kind_of(self.row).peak
        return f"{'dense' if self.config.experts is None else 'MoE'} {'16-bit' if peak == 'bf16' else peak}"

    @property
    def problem(self) -> Hashable:
        """Equal for runs that differ only in layout."""
        kept = ("source", "hardware", "interconnect", "network_gbps", "precision", "framework", "date")
        stated = tuple(self.row.text(column) for column in kept)
        return stated, self.config, self.seq_len, self.layout.global_batch, int(self.layout.ranks)


def case_of(row: Row) -> Case:
    """What a row asks for; raises RowError where it does not tell or contradicts itself."""
    check_kind(row)
    machine, of_machine = machine_of(row)
    ideal, kind = machine_of(row, calibrated=False)[0], kind_of(row)
    config = config_of(row)
    execution = execution_of(row, machine.ranks_per_chip)
    ranks = int(execution.layout.ranks)
    _check_slice(machine, ranks)
    devices, peak = row.need("n_devices"), quoted_peak(machine, kind)
    return Case(
        row=row,
        config=config,
        seq_len=row.need("seq_len"),
        precision=PRESETS[kind.preset],
        layout=execution.layout,
        machine=machine,
        ideal=ideal,
        peak=peak,
        differs=(*filter(None, (*row.text("flags").split("; "), *of_machine, kind.differs)), *execution.differs),
        seconds=measured_seconds(row, config, peak * ranks / devices),
    )


def _check_slice(machine: Machine, ranks: int) -> None:
    """Raises RowError for a part of a torus that is not let: its links are not known."""
    if not any(tier.shapes for tier in machine.tiers):
        return
    try:
        check_chips(machine, ranks // machine.ranks_per_chip)
    except MachineError:
        raise RowError(f"{ranks} ranks of {machine.name}, which is not let in such parts") from None
