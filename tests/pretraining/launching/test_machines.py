"""Machines of a run meet before torchrun connects them; one that fails ends the others with its line."""

import contextlib
import json
import threading

import pytest

from pretraining.launching import machines
from pretraining.launching.machines import Machines
from pretraining.utils import UserError
from tests import workplace
from tests.workplace import free_port


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"BEAT": 0.02, "LOST_AFTER": 0.5, "GRACE": 0.3, "NOTICE_AFTER": 0.1}.items():
        monkeypatch.setattr(machines, name, seconds)


class Enough(Exception):
    """A machine has waited for many rounds."""


def rounds(count: int):
    """For ``meet``: raises Enough after so many rounds."""
    left = iter(range(count))

    def end_after_them() -> None:
        if next(left, None) is None:
            raise Enough

    return end_after_them


@contextlib.contextmanager
def other_machine(directory, place: int, fails: str = ""):
    """Machine 1, which comes to a place and stays there, or fails."""
    begun, over = threading.Event(), threading.Event()

    def live() -> None:
        machine = Machines(directory, 1, 2)
        machine.told["place"] = place
        with contextlib.suppress(UserError), machine.running():
            begun.set()
            if fails:
                raise UserError(fails)
            over.wait(30)

    thread = threading.Thread(target=live)
    thread.start()
    begun.wait(10)
    if fails:
        thread.join()
    yield
    over.set()
    thread.join()


def test_a_machine_waits_until_the_others_have_come(tmp_path, capsys):
    machine = Machines(tmp_path, 0, 2)
    with machine.running():
        with pytest.raises(Enough):
            machine.meet(1, rounds(30))
        assert capsys.readouterr().out == "waiting for machine 1: start it with node_rank=1 and the same saves\n"
        with other_machine(tmp_path, place=1):
            machine.meet(1, rounds(1000))
            with pytest.raises(Enough):
                machine.meet(2, rounds(30))
        assert "waiting for machine 1 (" in capsys.readouterr().out


def test_a_failure_ends_the_others_with_its_line(tmp_path):
    machine = Machines(tmp_path, 0, 2)
    with pytest.raises(UserError, match=r"machine 1 \(.*\): teacher: no such directory"), machine.running():
        with other_machine(tmp_path, 0, fails="teacher: no such directory"):
            machine.meet(1, rounds(1000))
    assert "machine 1" in json.loads((tmp_path / "0.json").read_text())["failed"]  # and so on, to a third


def test_a_failure_just_before_the_start_counts_after_a_while(tmp_path):
    with other_machine(tmp_path, 0, fails="no such file"):
        pass
    machine = Machines(tmp_path, 0, 2)
    with pytest.raises(UserError, match="no such file"), machine.running():
        machine.meet(1, rounds(1000))


def test_two_machines_of_one_number_are_refused(tmp_path):
    first, second = Machines(tmp_path, 0, 2), Machines(tmp_path, 0, 2)
    with pytest.raises(UserError, match="node_rank=0: another machine"), first.running():
        first.meet(1, lambda: (tmp_path / "0.json").write_text(json.dumps(second.told)))


def test_the_files_of_an_earlier_start_do_not_count(tmp_path, monkeypatch):
    with other_machine(tmp_path, place=2):
        pass
    machine = Machines(tmp_path, 0, 2)
    with machine.running(), pytest.raises(Enough):
        machine.meet(1, rounds(100))
    with other_machine(tmp_path, 0, fails="an old failure"):
        pass
    monkeypatch.setattr(machines, "RECENT_FAILURE", -1)
    machine = Machines(tmp_path, 0, 2)
    with machine.running(), pytest.raises(Enough):
        machine.meet(1, rounds(100))


def test_a_machine_without_a_sign_of_life_is_lost(tmp_path):
    machine = Machines(tmp_path, 0, 2)
    with pytest.raises(UserError, match=r"machine 1 \(.*\) was lost: no sign of life"), machine.running():
        with other_machine(tmp_path, place=0):
            pass
        machine.meet(1, rounds(1000))


def test_a_single_machine_keeps_no_file(tmp_path):
    machine = Machines(tmp_path / "new", 0, 1)
    with machine.running():
        machine.meet(1, rounds(0))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_distill_sh_ends_with_the_line_of_the_machine_whose_checks_fail(work):
    settings = {**workplace.RECIPE, "nnodes": "2", "master_port": str(free_port())}
    first = workplace.start(["sh", "distill.sh"], work, **settings)
    ended = workplace.run_there(["sh", "distill.sh"], work, **{**settings, "node_rank": "1", "ta_config": "./other.json"})
    line = "other.json: no such file (the student's config)"
    assert ended.status == 2 and ended.err == f"error: {line}\n"
    out, err = (output.decode() for output in first.communicate(timeout=120))
    lines = [text for text in workplace.on_a_terminal(err).split("\n") if "rror" in text]
    assert first.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: machine 1 (") and lines[0].endswith(f"): {line}")
