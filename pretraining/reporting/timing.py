"""Fair timing: what is compared takes turns, so that a slow minute of the machine hits every side alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from pretraining.utils import progress_bar

TURN_SECONDS = 0.2  # a turn of calls of milliseconds: a short disturbance and the clock's resolution do not matter

Name = TypeVar("Name", bound=Hashable)


def time_in_turn(
    runners: Mapping[Name, Callable[[], object]], rounds: int, turn_seconds: float = 0.0, description: str | None = None
) -> dict[Name, list[float]]:
    """Times each runner once in every round, one runner after the other; a warm-up round before them does not count.

    Args:
        runners: what to call, by name.
        rounds: the number of rounds that count.
        turn_seconds: a turn repeats the call until this time has passed; with 0 it calls once.
        description: the label of a progress bar; without one there is no bar.

    Returns:
        seconds per call of each runner, one value per round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runners}
    turns = (rounds + 1) * len(runners)
    with progress_bar(total=turns, desc=description, unit="turn", disable=description is None) as bar:
        for round_number in range(rounds + 1):
            for name, run in runners.items():
                value = _seconds_per_call(run, turn_seconds)
                if round_number > 0:
                    seconds[name].append(value)
                bar.update()
    return seconds


def _seconds_per_call(run: Callable[[], object], turn_seconds: float) -> float:
    """The mean over the calls of one turn, at least one call."""
    start, calls = time.perf_counter(), 0
    while True:
        run()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= turn_seconds:
            return elapsed / calls
