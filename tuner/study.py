"""The one door to Optuna: studies in a journal file or a database, and its samplers by ask and tell."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from perfmodel import Estimate, Layout, StudyError
from tuner.interrupt import deferred_interrupt
from tuner.objective import Objective
from tuner.space import SIZES, Space

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
}

CHOICES = "choices"
"""Name of the parameter that holds the structural choices."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal(JournalFileBackend):
    """A journal that is never left damaged: what could not be written whole is taken back."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path))
        with path.open("r+b") as file:
            content = file.read()
            if not _is_journal(content):
                raise ValueError("a file of another kind")
            file.truncate(content.rfind(b"\n") + 1)  # a process that was killed may have left half a line

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or nothing."""
        size = os.path.getsize(self._file_path)
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self._file_path, size)
            raise


def _is_journal(content: bytes) -> bool:
    return not content or content.startswith(b'{"op_code":')


class Study:
    """One search in a storage, under a name that says what was searched."""

    def __init__(self, storage: str | None, name: str, objective: Objective, attributes: Mapping[str, Any]) -> None:
        """Open the study `name`, or make it, in a storage (None: only in memory).

        Raises StudyError where the storage cannot be read or written.
        """
        self.where = storage
        self._objective = objective
        direction = StudyDirection.MINIMIZE if objective.sense > 0 else StudyDirection.MAXIMIZE
        with _study_errors(storage):
            self._study = optuna.create_study(
                storage=_storage(storage), study_name=name, direction=direction, load_if_exists=True
            )
            if not self._study.user_attrs:
                for key, value in attributes.items():
                    self._study.set_user_attr(key, value)

    def record(self, space: Space, rows: Iterable[tuple[Layout, Estimate]]) -> bool:
        """Add results that are known already, unless the study holds them from an earlier run; False after Ctrl-C."""
        distributions = _distributions(space)
        with _study_errors(self.where), deferred_interrupt() as interrupt:
            recorded = {trial.user_attrs.get("layout") for trial in self._study.get_trials(deepcopy=False)}
            for layout, estimate in rows:
                if interrupt.requested:
                    return False
                attributes = _attributes(layout, estimate)
                if attributes["layout"] in recorded:
                    continue
                self._study.add_trial(
                    create_trial(
                        params=_parameters(space, layout),
                        distributions=distributions,
                        value=float(self._objective.value(estimate)),
                        user_attrs=attributes,
                        constraints=_constraints(estimate),
                    )
                )
        return True

    def sample(
        self, space: Space, evaluate: Callable[[Layout], Estimate], *, sampler: str, seed: int, trials: int
    ) -> Iterator[tuple[Layout, Estimate]]:
        """Ask the sampler and tell it the results until the study holds `trials`; yields each layout once.

        Those of an earlier run come first. Ctrl-C ends the search between two trials with KeyboardInterrupt.
        """
        distributions = _distributions(space)
        known: dict[Layout, Estimate] = {}
        with _study_errors(self.where), deferred_interrupt() as interrupt:
            done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            for layout in dict.fromkeys(_layout(space, trial.params) for trial in done):
                known[layout] = evaluate(layout)
                yield layout, known[layout]
            self._study.sampler = SAMPLERS[sampler](seed + len(done))  # a resumed run must not repeat its first draws
            for _ in range(trials - len(done)):
                if interrupt.requested:
                    raise KeyboardInterrupt
                asked = self._study.ask(distributions)
                layout = _layout(space, asked.params)
                new = layout not in known
                if new:
                    known[layout] = evaluate(layout)
                self._tell(asked, layout, known[layout])
                if new:
                    yield layout, known[layout]

    def _tell(self, asked: optuna.Trial, layout: Layout, estimate: Estimate) -> None:
        for key, value in _attributes(layout, estimate).items():
            asked.set_user_attr(key, value)
        for key, value in _constraints(estimate).items():
            asked.set_constraint(key, value)
        self._study.tell(asked, float(self._objective.value(estimate)))


def _attributes(layout: Layout, estimate: Estimate) -> dict[str, Any]:
    return {
        "layout": layout.notation(),
        "estimate": {
            name: float(getattr(estimate, name)) for name in ("step_time_s", "mfu", "tokens_per_s", "memory_bytes")
        },
    }


def _constraints(estimate: Estimate) -> dict[str, float]:
    """At most 0 where a layout is allowed."""
    over = float(estimate.memory_bytes) / float(estimate.memory_capacity_bytes) - 1.0
    rules = [rule for rule, broken in estimate.violations.items() if broken]
    return {"memory over capacity": over, "rules broken": float(len(rules))}


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """What a sampler may choose: the structural choices by name, each size as a quantile of those still possible."""
    quantiles = dict.fromkeys(SIZES, FloatDistribution(0.0, 1.0))
    return {CHOICES: CategoricalDistribution(list(space.tables)), **quantiles}


def _parameters(space: Space, layout: Layout) -> dict[str, Any]:
    choices, quantiles = space.encode(layout)
    return {CHOICES: choices, **quantiles}


def _layout(space: Space, parameters: Mapping[str, Any]) -> Layout:
    return space.decode(parameters[CHOICES], parameters)


def _storage(where: str | None) -> BaseStorage:
    if where is None:
        return InMemoryStorage()
    if "://" in where:
        return RDBStorage(where)
    return JournalStorage(Journal(Path(where)))


@contextmanager
def _study_errors(where: str | None) -> Iterator[None]:
    """Turn what storages raise into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except OSError as error:
        raise StudyError(
            f"study {where}: got {error.strerror or error}, expected a file that can be written: give another --storage"
        ) from error
    except (optuna.exceptions.OptunaError, SQLAlchemyError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudyError(
            f"study {where}: got {reason}, expected an Optuna journal or database: give another --storage"
        ) from error
