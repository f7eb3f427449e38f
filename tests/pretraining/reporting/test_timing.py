"""timing.py: who is called when, and what is counted."""

import time

import pytest

from pretraining.reporting.timing import time_in_turn


def test_runners_take_turns_and_the_first_round_is_a_warm_up():
    calls = []
    seconds = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert list(seconds) == ["a", "b"]
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_the_warm_up_is_not_counted():
    naps = iter([0.2, 0.0, 0.0])
    (seconds,) = time_in_turn({"a": lambda: time.sleep(next(naps))}, 2).values()
    assert max(seconds) < 0.1


def test_a_turn_repeats_the_call_until_its_time_is_over():
    calls = []

    def nap():
        calls.append(time.perf_counter())
        time.sleep(0.01)

    seconds = time_in_turn({"a": nap}, 1, turn_seconds=0.05)["a"]
    assert 4 <= len(calls) <= 10  # in two turns
    assert seconds == [pytest.approx(0.01, rel=0.9)] and seconds[0] >= 0.01


def test_only_a_description_shows_a_bar(capfd):
    time_in_turn({"a": int}, 1)
    assert capfd.readouterr().err == ""
    time_in_turn({"a": int}, 1, description="counting")
    assert "counting" in capfd.readouterr().err
