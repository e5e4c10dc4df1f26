"""The search: the exhaustive answer is the optimum, samplers come near it, studies hold what was found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import TINY
from machines import fake_machine

from perfmodel import Estimate, Graph, Layout, LayoutError, Machine, StudyError, load_machine, predict, trace
from perfmodel.models.config import parse_config
from perfmodel.models.training import train_program
from perfmodel.rules import OUT_OF_MEMORY
from tuner import Result, Space, search
from tuner.journal import Journal
from tuner.objective import OBJECTIVES, Objective
from tuner.ranking import Ranking
from tuner.space import POLICIES, Table
from tuner.study import SAMPLERS

COMPLETE = optuna.trial.TrialState.COMPLETE
RANKS, BATCH = 8, 16
SPACE = Space(ranks=RANKS, global_batches=(BATCH,))
TABLE: Table = SPACE.table(layers=int(str(TINY["num_hidden_layers"])))


@cache
def graphs() -> dict[str, Graph]:
    config = parse_config(TINY, "tiny")
    return {policy: trace(train_program(config, seq_len=64, recompute=policy)) for policy in POLICIES}


@cache
def found() -> Result:
    return search(graphs(), SPACE, load_machine("trn2"))


@cache
def one_by_one() -> list[Estimate]:
    """Every layout of the space, priced alone."""
    machine = load_machine("trn2")
    return [
        predict(graphs()[layouts.recompute], layouts.at(i), machine)
        for _, layouts in TABLE.chunks()
        for i in range(np.size(layouts.tp))
    ]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_best_is_the_best_of_all_layouts_priced_one_by_one(name: str) -> None:
    objective = OBJECTIVES[name]
    result = search(graphs(), SPACE, load_machine("trn2"), objective=objective, top=5)
    values = [float(objective.value(estimate)) for estimate in one_by_one() if estimate.fits]
    best = sorted(values, key=lambda value: objective.sense * value)[:5]
    assert [float(objective.value(candidate.estimate)) for candidate in result.top] == best
    assert (result.evaluated, result.feasible) == (len(one_by_one()), len(values))


def test_what_fell_and_what_fits_is_everything() -> None:
    result = found()
    assert sum(result.fallen.values()) + result.feasible == result.evaluated
    assert result.fallen


def test_a_search_gives_the_same_list_every_time() -> None:
    again = search(graphs(), SPACE, load_machine("trn2"))
    assert [c.layout for c in again.top] == [c.layout for c in found().top]


def test_equal_scores_keep_the_order_of_the_space() -> None:
    """An hour costs the same whatever the microbatch."""
    hourly = Objective(name="hourly", field="cost_usd_per_hour", sense=1)
    ranking = Ranking(objective=hourly, keep=3)
    layouts = Layout(mb=np.array([4, 1, 2, 8, 16]), global_batch=BATCH, zero=0, sp=False)
    ranking.add(layouts, predict(graphs()["full"], layouts, load_machine("h100")))
    assert [layout.mb for _, layout in ranking.best] == [4, 1, 2]


def test_candidates_carry_the_estimate_that_predict_gives() -> None:
    for candidate in found().top:
        alone = predict(graphs()[candidate.layout.recompute], candidate.layout, load_machine("trn2"))
        assert candidate.estimate == alone


def test_when_nothing_fits_the_nearest_miss_needs_least_memory() -> None:
    machine = fake_machine(memory_bytes=1.0)
    result = search(graphs(), SPACE, machine)
    assert result.best is None
    assert result.feasible == 0
    assert result.nearest is not None
    assert [reason.split(":")[0] for reason in result.nearest.estimate.reasons] == ["out of memory"]
    assert float(result.nearest.estimate.memory_bytes) == least_memory(machine)


def least_memory(machine: Machine) -> float:
    """Of the layouts that break no rule but that of memory."""
    least = np.inf
    for _, layouts in TABLE.chunks():
        estimate = predict(graphs()[layouts.recompute], layouts, machine)
        others = [mask for rule, mask in estimate.violations.items() if rule != OUT_OF_MEMORY]
        legal = ~np.any(np.stack(np.broadcast_arrays(*others)), axis=0)
        least = min(least, np.min(np.asarray(estimate.memory_bytes)[legal], initial=np.inf))
    return least


def test_an_empty_space_is_an_error() -> None:
    with pytest.raises(LayoutError, match="got tp=3, with which there is no layout of 8 ranks"):
        search(graphs(), Space(ranks=RANKS, global_batches=(BATCH,), fixed={"tp": 3}), load_machine("trn2"))


def test_larger_batches_are_compared_in_one_search() -> None:
    result = search(graphs(), Space(ranks=RANKS, global_batches=(16, 64)), load_machine("trn2"), top=3)
    assert {c.layout.global_batch for c in result.top} == {64}


# -- samplers -----------------------------------------------------------------------------------------------------


LARGE = Space(ranks=64, global_batches=(64,))
"""Some thousands of layouts, of which a machine with little memory takes few."""


@cache
def narrow() -> Machine:
    return replace(load_machine("trn2"), memory_bytes=2**21, memory_reserve_bytes=0.0)


@cache
def large() -> Result:
    return search(graphs(), LARGE, narrow(), top=10_000)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sampler_comes_near_the_exhaustive_optimum_and_never_beats_it(sampler: str) -> None:
    values = [float(candidate.estimate.tokens_per_s) for candidate in large().top]
    ratios, places = [], []
    for seed in range(1, 4):
        result = search(graphs(), LARGE, narrow(), sampler=sampler, trials=100, seed=seed)
        assert result.best is not None
        found = float(result.best.estimate.tokens_per_s)
        ratios.append(found / values[0])
        places.append(values.index(found) / len(values))
    assert max(ratios) <= 1.0
    assert sorted(ratios)[1] > 0.9
    assert sorted(places)[1] < 0.05  # an even draw of 100 is at 0.01 on average


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sampler_tries_only_what_fits_and_nothing_twice(sampler: str) -> None:
    result = search(graphs(), LARGE, narrow(), sampler=sampler, trials=30, top=100)
    assert (result.evaluated, result.feasible) == (large().evaluated, large().feasible)
    assert result.tried == 30
    assert len({candidate.layout for candidate in result.top}) == 30
    assert all(candidate.estimate.fits for candidate in result.top)


def test_a_sampler_that_has_tried_everything_has_found_the_optimum() -> None:
    space = Space(ranks=4, global_batches=(4,), fixed={"recompute": "full"}, policies=("full",))
    best = search(graphs(), space, load_machine("trn2")).best
    sampled = search(graphs(), space, load_machine("trn2"), sampler="random", trials=10_000)
    assert best is not None
    assert sampled.best is not None
    assert sampled.best.estimate.tokens_per_s == best.estimate.tokens_per_s


# -- studies ------------------------------------------------------------------------------------------------------


def studies(path: Path) -> list[optuna.Study]:
    storage = optuna.storages.JournalStorage(Journal(path))
    return [optuna.load_study(study_name=s.study_name, storage=storage) for s in storage.get_all_studies()]


def test_the_study_of_an_exhaustive_search_knows_the_best_layout(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.journal"
    result = search(graphs(), SPACE, load_machine("trn2"), storage=str(path))
    (study,) = studies(path)
    assert result.best is not None
    assert result.study == str(path)
    assert study.best_trial.user_attrs["layout"] == result.best.layout.notation()
    assert study.best_value == result.best.estimate.tokens_per_s
    choices, quantiles = TABLE.encode(result.best.layout)
    assert study.best_params == {"choices": choices, **quantiles}


def test_the_same_search_again_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    for _ in range(2):
        search(graphs(), SPACE, load_machine("trn2"), storage=str(path))
    (study,) = studies(path)
    layouts = [trial.user_attrs["layout"] for trial in study.trials]
    assert len(layouts) == len(set(layouts)) == min(100, found().feasible)


def test_another_search_is_another_study(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    search(graphs(), SPACE, load_machine("trn2"), storage=str(path))
    search(graphs(), SPACE, load_machine("h100"), storage=str(path))
    search(graphs(), SPACE, load_machine("trn2"), storage=str(path), objective=OBJECTIVES["memory"])
    assert len(studies(path)) == 3


def test_a_sampler_goes_on_where_its_study_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "a.journal")
    for trials in (20, 50, 50):
        result = search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=trials, storage=path)
    (study,) = studies(Path(path))
    done = study.get_trials(states=(COMPLETE,))
    assert result.tried == len(done) == len({trial.user_attrs["layout"] for trial in done}) == 50


def test_a_trial_says_its_layout_and_how_much_memory_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    result = search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=10, storage=str(path), top=10)
    (study,) = studies(path)
    used = {c.layout.notation(): c.estimate.memory_bytes / c.estimate.memory_capacity_bytes for c in result.top}
    for trial in study.get_trials(states=(COMPLETE,)):
        assert trial.constraints == {"memory over capacity": used[trial.user_attrs["layout"]] - 1.0}


def test_where_nothing_fits_a_sampler_tries_nothing() -> None:
    result = search(graphs(), SPACE, fake_machine(memory_bytes=1.0), sampler="random", trials=10)
    assert (result.best, result.tried, result.feasible) == (None, None, 0)
    assert result.nearest is not None


def test_a_study_in_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    result = search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=5, storage=url)
    (name,) = optuna.get_all_study_names(url)
    assert len(optuna.load_study(study_name=name, storage=url).trials) == 5
    assert result.study == url


@pytest.mark.parametrize(
    "storage", ["/proc/no/such.journal", "nosuchdriver://host/db", "sqlite:////proc/no/such.db", "not a url://x"]
)
def test_a_storage_that_cannot_be_opened_is_an_error_before_the_search(storage: str) -> None:
    with pytest.raises(StudyError, match=r"got .*expected .*give another --storage"):
        search(graphs(), SPACE, load_machine("trn2"), storage=storage)


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="a folder or a device"):
        search(graphs(), SPACE, load_machine("trn2"), storage=str(tmp_path))


def test_a_file_of_another_kind_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, half a li")
    with pytest.raises(StudyError, match="a file of another kind"):
        search(graphs(), SPACE, load_machine("trn2"), storage=str(path))
    assert path.read_text() == "dear diary, half a li"


def test_half_a_line_at_the_end_of_a_journal_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=3, storage=str(path))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"wor')
    (study,) = studies(path)
    assert len(study.trials) == 3
    assert path.read_bytes() == whole


def test_a_device_is_no_journal() -> None:
    with pytest.raises(StudyError, match="a folder or a device"):
        search(graphs(), SPACE, load_machine("trn2"), storage="/dev/null")


@pytest.mark.parametrize(
    "content", ['{"op_code":99,"worker_id":"x"}', '{"op_code":0}', '{"op_code":4,"study_id":7}', '{"op_code":nonsense']
)
def test_a_journal_that_optuna_cannot_read_is_an_error_and_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.journal"
    path.write_text(content + "\n" + content + "\n")
    with pytest.raises(StudyError, match=r"got .*expected an Optuna journal"):
        search(graphs(), SPACE, load_machine("trn2"), storage=str(path))
    assert path.read_text() == content + "\n" + content + "\n"


def test_a_stale_lock_of_another_tool_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("a.journal", "a.journal.lock")
    assert search(graphs(), SPACE, load_machine("trn2"), storage="a.journal").study == "a.journal"


SAMPLE = """
import sys
from test_search import *
search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=int(sys.argv[2]), storage=sys.argv[1])
"""


def sample(path: Path, trials: int) -> subprocess.Popen[bytes]:
    """A sampler in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", SAMPLE, str(path), str(trials)], env=environment)


def test_a_killed_search_can_be_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    process = sample(path, 1000)
    while process.poll() is None and not (path.exists() and path.stat().st_size > 20_000):
        time.sleep(0.001)
    process.kill()
    process.wait()
    (study,) = studies(path)
    done = len(study.get_trials(states=(COMPLETE,)))
    result = search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=done + 5, storage=str(path))
    assert result.tried == done + 5


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    search(graphs(), SPACE, load_machine("trn2"), sampler="random", trials=1, storage=str(path))
    processes = [sample(path, 60) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    (study,) = studies(path)
    done = study.get_trials(states=(COMPLETE,))
    layouts = {trial.user_attrs["layout"] for trial in done}
    assert 60 <= len(layouts) <= len(done) <= 62  # both may have asked when 59 were known


FULL_DISK = """
import resource
import sys
from test_search import *
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
result = search(graphs(), SPACE, load_machine("trn2"), sampler=sys.argv[2], trials=100, storage=sys.argv[1])
print(json.dumps([result.study, result.study_error, len(result.top)]))
"""


@pytest.mark.parametrize("sampler", ["exhaustive", "random"])
def test_a_full_disk_costs_the_study_but_neither_the_result_nor_the_file(tmp_path: Path, sampler: str) -> None:
    path = tmp_path / "a.journal"
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), sampler],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    study, error, shown = json.loads(run.stdout)
    assert study is None
    assert "File too large" in error
    assert shown == 10 if sampler == "exhaustive" else shown > 0
    assert path.read_bytes().endswith(b"\n")
    (kept,) = studies(path)
    assert 0 < len(kept.get_trials(states=(COMPLETE,))) < 100


@pytest.mark.parametrize("sampler", ["exhaustive", "random"])
def test_ctrl_c_ends_between_two_trials(tmp_path: Path, sampler: str) -> None:
    path = tmp_path / "a.journal"

    def interrupt() -> None:
        while not path.exists() or path.stat().st_size < 10_000:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    result = search(graphs(), SPACE, load_machine("trn2"), sampler=sampler, trials=1000, storage=str(path))
    assert result.interrupted
    assert result.best is not None
    (study,) = studies(path)
    states = {trial.state for trial in study.trials}
    assert states == {COMPLETE}
    assert 0 < len(study.trials) < (100 if sampler == "exhaustive" else 1000)
