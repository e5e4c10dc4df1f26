"""The search: exhaustive by default, or an Optuna sampler by ask and tell; either way with a study to look into."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perfmodel import Estimate, Graph, Layout, LayoutError, Machine, StudyError, __version__, predict
from tuner.exhaustive import price_all
from tuner.objective import OBJECTIVES, Objective
from tuner.ranking import Ranking
from tuner.result import Candidate, Result
from tuner.space import Space
from tuner.study import Study

EXHAUSTIVE = "exhaustive"
RECORDED = 100
"""Layouts that an exhaustive search writes to its study, best first."""


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
    progress: Callable[[int], None] = lambda done: None,
) -> Result:
    """Find the best layouts of a space.

    graphs:   the program by recompute policy, one for each of `space.policies`
    sampler:  "exhaustive", or one of `tuner.study.SAMPLERS` for `trials` trials
    storage:  path of a journal file or URL of a database for the study; None keeps no study
    progress: hears how many layouts have been priced

    A study that holds part of the same search is taken up. Raises LayoutError for an empty space and StudyError for a
    storage that cannot be opened; one that fails later costs the study, not the result.
    """
    started = time.perf_counter()
    if not space.tables:
        fixed = ",".join(f"{key}={value}" for key, value in space.fixed.items())
        raise LayoutError(f"layout: got no layout of {space.ranks} ranks with {fixed}, expected some: fix fewer keys")
    key = _digest(graphs, space, machine, objective, sampler, seed)
    name = (
        f"{next(iter(graphs.values())).name} on {machine.name}, {space.ranks} ranks, {sampler}, {objective.name}, {key}"
    )
    study = Study(storage, name, objective, {"space": repr(space), "version": __version__})
    run = _Run(graphs, space, machine, Ranking(objective=objective, keep=max(top, RECORDED)), study, progress)
    if sampler == EXHAUSTIVE:
        run.exhaust()
    else:
        run.sample(sampler, seed, trials)
    return run.result(top, time.perf_counter() - started)


@dataclass
class _Run:
    """One search under way."""

    graphs: Mapping[str, Graph]
    space: Space
    machine: Machine
    ranking: Ranking
    study: Study
    progress: Callable[[int], None]
    error: StudyError | None = None
    interrupted: bool = False

    def evaluate(self, layout: Layout) -> Estimate:
        """The estimate of one layout."""
        return predict(self.graphs[layout.recompute], layout, self.machine)

    def exhaust(self) -> None:
        """Price the whole space, then write the best layouts down."""
        price_all(self.graphs, self.space, self.machine, self.ranking, self.progress)
        if self.study.where is None:
            return
        rows = ((layout, self.evaluate(layout)) for _, layout in self.ranking.best)
        try:
            self.interrupted = not self.study.record(self.space, rows)
        except StudyError as error:
            self.error = error

    def sample(self, sampler: str, seed: int, trials: int) -> None:
        """Let a sampler propose layouts one by one."""
        try:
            for layout, estimate in self.study.sample(
                self.space, self.evaluate, sampler=sampler, seed=seed, trials=trials
            ):
                self.ranking.add(layout, estimate)
                self.progress(self.ranking.evaluated)
        except StudyError as error:
            self.error = error
        except KeyboardInterrupt:
            self.interrupted = True

    def result(self, top: int, seconds: float) -> Result:
        """The outcome, with full estimates of the layouts that are shown."""
        ranking = self.ranking
        nearest = None if ranking.best else ranking.nearest
        return Result(
            top=tuple(Candidate(layout=layout, estimate=self.evaluate(layout)) for _, layout in ranking.best[:top]),
            evaluated=ranking.evaluated,
            feasible=ranking.feasible,
            fallen=dict(ranking.fallen.most_common()),
            nearest=Candidate(layout=nearest, estimate=self.evaluate(nearest)) if nearest else None,
            seconds=seconds,
            study=None if self.error else self.study.where,
            study_error=str(self.error) if self.error else None,
            interrupted=self.interrupted,
        )


def _digest(graphs: Mapping[str, Graph], *parts: object) -> str:
    """Eight digits that change with anything that the numbers of a study depend on."""
    text = "\n".join(repr(part) for part in (__version__, sorted(graphs.items()), *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
