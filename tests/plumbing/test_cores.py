"""How many threads are used beside other processes. /proc/stat and the clocks are written by hand."""

import builtins
import io
import os

import pytest
import torch

from plumbing import cores

STAT = """cpu  900 900 900 900 900 900 900 900 0 0
cpu0 100 7 30 1000 50 4 6 9 0 0
cpu1 200 7 60 1000 50 8 2 9 0 0
cpu2 5000 7 5000 1000 50 4 6 9 0 0
intr 12 34
"""


@pytest.fixture
def machine(monkeypatch):
    """A machine of two cores: (elapsed, busy, own) seconds at the next look."""
    now = {"clock": 100.0, "busy": 50.0, "own": 10.0}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(cores.time, "process_time", lambda: now["own"])
    monkeypatch.setattr(cores, "busy_seconds", lambda: now["busy"])
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = cores.Cores()
    found.look()

    def look(elapsed: float, busy: float, own: float) -> int:
        now.update(clock=now["clock"] + elapsed, busy=now["busy"] + busy, own=now["own"] + own)
        found.look()
        return torch.get_num_threads()

    yield look
    torch.set_num_threads(before)


def test_another_process_takes_a_thread_away_and_gives_it_back(machine):
    assert machine(1.0, busy=1.95, own=1.9) == 2
    assert machine(1.0, busy=2.0, own=1.4) == 1, "it took .6 of a core"
    assert machine(1.0, busy=2.0, own=1.0) == 1, "and now a whole one"
    assert machine(1.0, busy=1.1, own=1.0) == 2, "it is gone"


def test_counters_are_read_twice_a_second_at_most(machine):
    assert machine(0.4, busy=0.8, own=0.3) == 2
    assert machine(0.2, busy=0.4, own=0.2) == 1, "of the .6 seconds in all"


def test_a_chosen_number_of_threads_is_the_most(machine):
    torch.set_num_threads(1)
    assert machine(1.0, busy=1.0, own=1.0) == 1


def test_nothing_changes_where_the_variable_is_set(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine(1.0, busy=2.0, own=1.0) == 2


def test_nothing_changes_where_nobody_counts(machine, monkeypatch):
    monkeypatch.setattr(cores, "busy_seconds", lambda: 0.0)
    assert machine(1.0, busy=2.0, own=1.0) == 2


def test_busy_seconds_of_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(builtins, "open", lambda *_: io.StringIO(STAT))
    # user + system + irq + softirq: 140 and 270 ticks; not nice, idle, iowait, stolen
    assert cores.busy_seconds() == pytest.approx(410 / os.sysconf("SC_CLK_TCK"))


def test_a_nice_process_counts_the_nice_ones_with_itself(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getpriority", lambda *_: 10)
    monkeypatch.setattr(builtins, "open", lambda *_: io.StringIO(STAT))
    assert cores.busy_seconds() == pytest.approx(424 / os.sysconf("SC_CLK_TCK"))


def test_nothing_changes_where_the_thread_is_bound_to_a_core(machine, monkeypatch):
    """OMP_PROC_BIND leaves this thread one core, whose counter holds a part of this process's work."""
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0})
    assert machine(1.0, busy=1.0, own=1.3) == 2


def test_a_system_without_counters_is_no_error(monkeypatch):
    def missing(*_):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    assert cores.busy_seconds() == 0.0


@pytest.mark.parametrize(
    "count, taken, most, expected", [(2, 0.0, 2, 2), (2, 3.0, 2, 1), (16, 4.1, 8, 8), (16, 12.2, 8, 4)]
)
def test_threads_are_the_free_cores(count, taken, most, expected):
    assert cores.threads(count, taken, most) == expected
