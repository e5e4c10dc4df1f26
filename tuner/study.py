"""The one door to Optuna: studies in a journal file or a database, and its samplers by ask and tell."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from perfmodel import Estimate, Layout, StudyError
from tuner.journal import Journal
from tuner.objective import Objective
from tuner.space import SIZES, Table

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
}
SEEDS = 2**32

CHOICES = "choices"
"""Name of the parameter that holds the structural choices."""

LOST = datetime.timedelta(minutes=1)
"""A trial that has run for longer belongs to a process that was killed: pricing one takes milliseconds."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Study:
    """One search in a storage, under a name that says what was searched.

    The parameters of a trial are a point of the table's unit cube; its attribute `layout` says what they mean.
    """

    def __init__(self, storage: str | None, name: str, objective: Objective, attributes: Mapping[str, Any]) -> None:
        """Open the study `name`, or make it, in a storage (None: only in memory).

        Raises StudyError where the storage cannot be read or written.
        """
        self.where = storage
        self._objective = objective
        self._seen: set[int] = set()
        direction = StudyDirection.MINIMIZE if objective.sense > 0 else StudyDirection.MAXIMIZE
        with _study_errors(storage, *UNREADABLE):
            self._study = optuna.create_study(
                storage=_storage(storage), study_name=name, direction=direction, load_if_exists=True
            )
            if not self._study.user_attrs:
                for key, value in attributes.items():
                    self._study.set_user_attr(key, value)
            self._give_up_lost_trials()

    def _give_up_lost_trials(self) -> None:
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.datetime_start is None or now - trial.datetime_start.replace(tzinfo=None) > LOST:
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def draw_from(self, table: Table) -> None:
        """Say which layouts the points of trials stand for; the same for every run of a study."""
        self._table = table
        self._distributions: dict[str, BaseDistribution] = {
            CHOICES: CategoricalDistribution(list(table.rows)),
            **dict.fromkeys(SIZES, FloatDistribution(0.0, 1.0)),
        }

    def news(self) -> list[Layout]:
        """Layouts of the trials that were finished since the last call, by whichever process, oldest first."""
        with _study_errors(self.where):
            trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        fresh = [trial for trial in trials if trial.number not in self._seen]
        self._seen.update(trial.number for trial in fresh)
        return [self._layout(trial.params) for trial in fresh]

    def record(self, layout: Layout, estimate: Estimate) -> None:
        """Add a result that is known already."""
        choices, quantiles = self._table.encode(layout)
        trial = create_trial(
            params={CHOICES: choices, **quantiles},
            distributions=self._distributions,
            value=float(self._objective.value(estimate)),
            user_attrs=_attributes(layout, estimate),
            constraints=_constraints(estimate),
        )
        with _study_errors(self.where):
            self._study.add_trial(trial)

    def seed(self, sampler: str, seed: int) -> None:
        """Choose the sampler for the next trials; a study that holds some must not be given the same draws again."""
        with _study_errors(self.where):
            count = len(self._study.get_trials(deepcopy=False))
        self._sampler, self._seed = SAMPLERS[sampler], seed
        self._draw(count)

    def _draw(self, after: int) -> None:
        """Draw what no run of this study drew, `after` how many trials."""
        self._study.sampler = self._sampler((self._seed + after) % SEEDS)

    def ask(self) -> tuple[optuna.Trial, Layout]:
        """A new trial and the layout that the sampler proposes."""
        with _study_errors(self.where):
            asked = self._study.ask(self._distributions)
        return asked, self._layout(asked.params)

    def tell(self, asked: optuna.Trial, layout: Layout, estimate: Estimate) -> None:
        """The result of a trial."""
        with _study_errors(self.where):
            for key, value in _attributes(layout, estimate).items():
                asked.set_user_attr(key, value)
            for key, value in _constraints(estimate).items():
                asked.set_constraint(key, value)
            self._study.tell(asked, float(self._objective.value(estimate)))

    def pass_over(self, asked: optuna.Trial) -> None:
        """Close a trial that proposed what is known; samplers learn nothing from a failed one.

        The next draws are others: processes that started at once would propose the same for ever.
        """
        with _study_errors(self.where):
            self._study.tell(asked, state=TrialState.FAIL)
        self._draw(asked.number)

    def _layout(self, parameters: Mapping[str, Any]) -> Layout:
        return self._table.decode(parameters[CHOICES], parameters)


def _attributes(layout: Layout, estimate: Estimate) -> dict[str, Any]:
    shown = ("step_time_s", "lower_s", "upper_s", "mfu", "tokens_per_s", "memory_bytes")
    numbers = {name: float(getattr(estimate, name)) for name in shown}
    return {"layout": layout.notation(), "global_batch": int(layout.global_batch), "estimate": numbers}


def _constraints(estimate: Estimate) -> dict[str, float]:
    """At most 0 where a layout fits."""
    return {"memory over capacity": float(estimate.memory_bytes) / float(estimate.memory_capacity_bytes) - 1.0}


def _storage(where: str | None) -> BaseStorage:
    if where is None:
        return InMemoryStorage()
    if "://" in where:
        return RDBStorage(where)
    return JournalStorage(Journal(Path(where)))


STORAGE: tuple[type[Exception], ...] = (optuna.exceptions.OptunaError, SQLAlchemyError)
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError,
    ImportError,
    KeyError,
    TypeError,
    AssertionError,
)
"""What opening raises for URLs without a driver and for journals whose lines are not Optuna's."""


@contextmanager
def _study_errors(where: str | None, *more: type[Exception]) -> Iterator[None]:
    """Turn what storages raise into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except OSError as error:
        raise StudyError(
            f"study {where}: got {error.strerror or error}, expected a file that can be written: give another --storage"
        ) from error
    except (*STORAGE, *more) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudyError(
            f"study {where}: got {reason}, expected an Optuna journal or database: give another --storage"
        ) from error
