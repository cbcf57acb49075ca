"""Work is shared among the threads: every job once, by the pool or by an open team, whoever has come."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit, types

from edgegemma.kernels import threads
from edgegemma.kernels.fork import Shared, fork, fork_both, gather
from edgegemma.kernels.late import ready
from edgegemma.kernels.team import _DOZE, _LONG, _wait, open_team, team, write

COUNTS = types.Array(types.int64, 1, "C")


def _count_jobs(given, first, stop):  # type: ignore[no-untyped-def]
    (counts,) = given
    for job in range(first, stop):
        counts[job] += 1


def _refuse_a_job(given, first, stop):  # type: ignore[no-untyped-def]
    (counts,) = given
    for job in range(first, stop):
        if counts[job] > 0:
            raise ValueError("this job")


def _lead(given, _first, _stop):  # type: ignore[no-untyped-def]
    counts, rounds = given
    for _ in range(rounds):
        fork("count_jobs", ready("count_jobs"), (counts,), counts.size)


def _lead_and_fail(given, _first, _stop):  # type: ignore[no-untyped-def]
    if given[1] > 0:
        raise ValueError("the leader")


Shared("count_jobs", [COUNTS], _count_jobs)
Shared("refuse_a_job", [COUNTS], _refuse_a_job)
Shared("lead", [COUNTS, types.int64], _lead)
Shared("lead_and_fail", [COUNTS, types.int64], _lead_and_fail)


@njit
def by_pool(counts):  # type: ignore[no-untyped-def]
    fork("count_jobs", ready("count_jobs"), (counts,), counts.size)


@njit
def both(one, other):  # type: ignore[no-untyped-def]
    count, refuse = ready("count_jobs"), ready("refuse_a_job")
    sizes = one.size, other.size
    fork_both(ready("both"), "count_jobs", count, (one,), sizes[0], count, (other,), sizes[1])
    if other.size > 150:
        fork_both(ready("both"), "count_jobs", count, (one,), 0, refuse, (other,), sizes[1])


@njit
def refused(counts):  # type: ignore[no-untyped-def]
    fork("refuse_a_job", ready("refuse_a_job"), (counts,), counts.size)


@njit
def by_team(counts, rounds):  # type: ignore[no-untyped-def]
    ready("count_jobs")
    ready("hand_out")
    address, serve = ready("lead"), ready("serve")
    open_team()
    gather("lead", address, (counts, rounds), serve)


@njit
def by_nobody_else(counts):  # type: ignore[no-untyped-def]
    address = ready("count_jobs")
    ready("hand_out")
    open_team()
    fork("count_jobs", address, (counts,), counts.size)
    write(team(), 0)  # closed


@njit
def by_failing_leader(counts, rounds):  # type: ignore[no-untyped-def]
    ready("hand_out")
    address, serve = ready("lead_and_fail"), ready("serve")
    open_team()
    gather("lead_and_fail", address, (counts, rounds), serve)


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    with threads.lock:
        threads.use(1 << 10)
        yield


@given(st.integers(0, 200), st.integers(1, 8))
@settings(deadline=None)
def test_the_pool_does_every_job_once(jobs: int, count: int) -> None:
    threads.use(count)
    counts = np.zeros(jobs, np.int64)
    by_pool(counts)
    assert (counts == 1).all()


@given(st.integers(0, 200), st.integers(0, 150), st.integers(1, 8))
@settings(deadline=None)
def test_two_kernels_do_their_jobs_together(jobs: int, others: int, count: int) -> None:
    threads.use(count)
    one, other = np.zeros(jobs, np.int64), np.zeros(others, np.int64)
    both(one, other)
    assert (one == 1).all()
    assert (other == 1).all()


def test_what_a_job_of_the_second_raises_is_raised() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        both(np.zeros(10, np.int64), np.zeros(151, np.int64))


@given(st.integers(0, 200), st.integers(1, 8), st.integers(0, 50))
@settings(deadline=None)
def test_a_team_does_every_job_of_every_round_once(jobs: int, count: int, rounds: int) -> None:
    threads.use(count)
    counts = np.zeros(jobs, np.int64)
    by_team(counts, rounds)
    assert (counts == rounds).all()


def test_a_long_run_of_teams_loses_no_job() -> None:
    counts = np.zeros(64, np.int64)
    for _ in range(2000):
        by_team(counts, 20)
    assert (counts == 40_000).all()


def test_work_is_done_where_nobody_else_came() -> None:
    counts = np.zeros(10, np.int64)
    by_nobody_else(counts)
    assert (counts == 1).all()


def test_what_a_job_raises_is_raised() -> None:
    with pytest.raises(RuntimeError, match="refuse_a_job failed"):
        refused(np.array([0, 0, 0, 1]))


def test_a_leader_that_fails_closes_the_team() -> None:
    counts = np.zeros(4, np.int64)
    with pytest.raises(RuntimeError, match="lead_and_fail failed"):
        by_failing_leader(counts, 1)
    by_team(counts, 3)
    assert (counts == 3).all()


def test_who_waits_long_sleeps_between_looks() -> None:
    looks = _wait(_LONG)  # which compiles it
    began = time.monotonic()
    for _ in range(20):
        looks = _wait(looks)
    assert looks == _LONG + 21
    assert time.monotonic() - began >= 20 * _DOZE * 1e-6
