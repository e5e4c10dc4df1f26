"""The search: all layouts are priced; the best are the answer, or an Optuna sampler tries some of those that fit.

Either way a study records what was found.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perfmodel import Estimate, Graph, Layout, Machine, StudyError, __version__, predict
from tuner.interrupt import deferred_interrupt
from tuner.objective import OBJECTIVES, Objective
from tuner.ranking import Ranking
from tuner.result import Candidate, Result
from tuner.space import Space, Table
from tuner.study import Study

EXHAUSTIVE = "exhaustive"
RECORDED = 100
"""Layouts that an exhaustive search writes to its study, best first."""

ASKS = 10
"""Proposals per trial after which a sampler that repeats itself is taken to be done."""


def search(
    graphs: Mapping[str, Graph],
    space: Space,
    machine: Machine,
    *,
    objective: Objective = OBJECTIVES["throughput"],
    sampler: str = EXHAUSTIVE,
    trials: int = 200,
    seed: int = 0,
    storage: str | None = None,
    top: int = 10,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Find the best layouts of a space.

    graphs:   the program by recompute policy, one for each of `space.policies`
    sampler:  "exhaustive", or one of `tuner.study.SAMPLERS` to try `trials` of the layouts that fit
    storage:  path of a journal file or URL of a database for the study; None keeps no study
    progress: hears how many layouts of how many have been priced, or tried

    A study that holds part of the same search is taken up. Ctrl-C ends the search with what it has found. Raises
    LayoutError for an empty space and StudyError for a storage that cannot be opened; one that fails later costs the
    study, not the result.
    """
    started = time.perf_counter()
    program = next(iter(graphs.values()))
    table = space.table(program.size("experts"), program.size("layers"))
    chooser = EXHAUSTIVE if sampler == EXHAUSTIVE else f"{sampler} seed {seed}"
    key = _digest(graphs, space, machine, objective, chooser)
    name = f"{program.name} on {machine.name}, {space.ranks} ranks, {sampler}, {objective.name}, {key}"
    study = Study(storage, name, objective, {"space": repr(space), "version": __version__})
    run = _Run(graphs, machine, table, study, progress, Ranking(objective=objective, keep=max(top, RECORDED)))
    with deferred_interrupt() as interrupt:
        run.stop = lambda: interrupt.requested
        run.price()
        run.choose(sampler, seed, trials)
    return run.result(top, time.perf_counter() - started)


@dataclass
class _Run:
    """One search under way."""

    graphs: Mapping[str, Graph]
    machine: Machine
    table: Table
    study: Study
    progress: Callable[[int, int], None]
    ranking: Ranking
    fitting: dict[str, list[NDArray[np.bool_]]] = field(default_factory=dict)
    tried: dict[Layout, float] | None = None  # layouts that a sampler chose, and their scores
    stop: Callable[[], bool] = lambda: False
    error: StudyError | None = None
    interrupted: bool = False
    _known: dict[Layout, Estimate] = field(default_factory=dict)

    def evaluate(self, layout: Layout) -> Estimate:
        """The estimate of one layout, worked out once."""
        if layout not in self._known:
            self._known[layout] = self._predict(layout)
        return self._known[layout]

    def _predict(self, layouts: Layout) -> Estimate:
        return predict(self.graphs[layouts.recompute], layouts, self.machine)

    def price(self) -> None:
        """Price the whole table."""
        for name, layouts in self.table.chunks():
            if self.halted():
                return
            fits = self.ranking.add(layouts, self._predict(layouts))
            self.fitting.setdefault(name, []).append(fits)
            self.progress(self.ranking.evaluated, len(self.table))

    def halted(self) -> bool:
        """Whether to end here, because somebody wants it."""
        self.interrupted = self.interrupted or self.stop()
        return self.interrupted

    def choose(self, sampler: str, seed: int, trials: int) -> None:
        """Take the best of all, or let a sampler try some; a study that fails now is given up."""
        try:
            if sampler == EXHAUSTIVE:
                self.record()
            else:
                self.sample(sampler, seed, trials)
        except StudyError as error:
            self.error = error

    def record(self) -> None:
        """Write the best layouts down, but for those that the study holds from an earlier run."""
        if self.study.where is None or self.halted():
            return
        self.study.draw_from(self.table)
        known = set(self.study.news())
        for _, layout in self.ranking.best[:RECORDED]:
            if self.halted():
                return
            if layout not in known:
                self.study.record(layout, self.evaluate(layout))

    def sample(self, sampler: str, seed: int, trials: int) -> None:
        """Let a sampler choose among the layouts that fit until the study holds `trials` different ones."""
        if self.halted() or not self.ranking.feasible:
            return
        self.tried = {}
        table = self.table.where({name: np.concatenate(masks) for name, masks in self.fitting.items()})
        self.study.draw_from(table)
        self.study.seed(sampler, seed)
        trials = min(trials, len(table))
        for _ in range(ASKS * trials):
            for layout in self.study.news():  # of earlier runs and of other processes, too
                self.try_out(layout)
            self.progress(len(self.tried), trials)
            if len(self.tried) >= trials or self.halted():
                return
            asked, layout = self.study.ask()
            if layout in self.tried:
                self.study.pass_over(asked)
            else:
                self.study.tell(asked, layout, self.try_out(layout))

    def try_out(self, layout: Layout) -> Estimate:
        """The estimate of a layout that was chosen."""
        assert self.tried is not None
        estimate = self.evaluate(layout)
        self.tried[layout] = float(self.ranking.objective.score(estimate))
        return estimate

    def result(self, top: int, seconds: float) -> Result:
        """The outcome, with full estimates of the layouts that are shown."""
        ranking = self.ranking
        found = [layout for _, layout in ranking.best]
        if self.tried is not None:
            found = sorted(self.tried, key=self.tried.__getitem__)
        nearest = None if ranking.best else ranking.nearest
        return Result(
            top=tuple(Candidate(layout=layout, estimate=self.evaluate(layout)) for layout in found[:top]),
            evaluated=ranking.evaluated,
            feasible=ranking.feasible,
            tried=None if self.tried is None else len(self.tried),
            fallen=dict(ranking.fallen.most_common()),
            nearest=Candidate(layout=nearest, estimate=self.evaluate(nearest)) if nearest else None,
            seconds=seconds,
            study=None if self.error else self.study.where,
            study_error=str(self.error) if self.error else None,
            interrupted=self.interrupted,
        )


def _digest(graphs: Mapping[str, Graph], *parts: object) -> str:
    """Eight digits that change with anything that the numbers of a study depend on, but not with source lines."""
    text = "\n".join(repr(part) for part in (__version__, sorted(graphs.items()), *parts))
    text = re.sub(r"(source|scope|origin)=('[^']*'|\"[^\"]*\")", "", text)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
