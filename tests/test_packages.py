"""The packages: the lock has every pin and the whole tree, with hashes; LICENSES.md has every licence; make audit tells what it knows."""

import re
import subprocess
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "pretraining"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Licences by a word that names them. All but MPL are permissive; MPL binds changes of the package's own files.
FAMILIES = {
    "Apache": "apache",
    "BSD": "bsd",
    "MIT": r"mit\b",
    "MPL": "mpl|mozilla",
    "PSF": "psf|python software foundation",
    "ISC": r"isc\b",
    "Zlib": "zlib",
    "CC0": "cc0",
    "BSL": "bsl",
    "CNRI": "cnri",
    "own terms": "own terms|proprietary|nvidia",
    "GPL": "gpl|gnu",
}
PERMISSIVE = set(FAMILIES) - {"MPL", "GPL", "own terms"}
OTHERS = {"certifi": {"MPL"}, "pathspec": {"MPL"}, "tqdm": {"MPL", "MIT"}}
WITHOUT_METADATA = {"ltp", "ltp-core", "ltp-extension"}  # their licence files have LTP's own terms


def of_nvidia(name: str) -> bool:
    return name.startswith("nvidia-") or name in ("cuda-toolkit", "cuda-bindings")


def read_pins(pattern: str = "requirements*.txt") -> list[Requirement]:
    lines = [line for path in sorted(FOLDER.glob(pattern)) for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


class Locked(NamedTuple):
    """An entry of requirements.lock."""

    requirement: Requirement
    hashes: list[str]


def read_lock() -> list[Locked]:
    text = (FOLDER / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [Locked(Requirement(line.split("--hash=")[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)) for line in lines]


LOCK = read_lock()
LOCKED_NAMES = {canonicalize_name(entry.requirement.name) for entry in LOCK}


def environment(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux", "platform_machine": "x86_64"}


def applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**environment(python), "extra": ""})


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_every_pin(python):
    """After a change of a pin: make the lock again, as its second line says."""
    wanted = {(canonicalize_name(pin.name), str(pin.specifier)) for pin in read_pins() if applies(pin, python)}
    locked = [
        (canonicalize_name(entry.requirement.name), str(entry.requirement.specifier))
        for entry in LOCK
        if applies(entry.requirement, python)
    ]
    assert wanted and not wanted - set(locked)
    names = [name for name, _ in locked]
    assert len(names) == len(set(names))


def test_every_entry_of_the_lock_is_exact_and_has_hashes():
    for entry in LOCK:
        assert re.fullmatch(r"==[\w.]+", str(entry.requirement.specifier)) and entry.hashes, entry.requirement


def tree() -> dict[str, Distribution]:
    """What the pins need here, they themselves included, as it is installed; the packages for exporting and for Ray only if they are."""
    optional = {canonicalize_name(pin.name) for file in ("export", "cluster") for pin in read_pins(f"requirements-{file}.txt")}
    waiting, found = read_pins(), dict[str, Distribution]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = distribution(name)
        except ModuleNotFoundError:
            assert name in optional, f"{name} is not installed"
            continue
        needed = map(Requirement, found[name].requires or [])
        waiting += [
            Requirement(str(need).split(";")[0])
            for need in needed
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return found


def test_the_lock_has_the_whole_tree():
    installed = tree()
    assert len(installed) > 50 and not set(installed) - LOCKED_NAMES
    for name in {canonicalize_name(pin.name) for pin in read_pins()} & set(installed):
        here = Version(installed[name].version).public  # 2.13.0+cpu is 2.13.0
        assert any(canonicalize_name(entry.requirement.name) == name and here in entry.requirement.specifier for entry in LOCK), name


# ---------------------------------------------------------------- licences


def families(text: str) -> set[str]:
    return {family for family, words in FAMILIES.items() if re.search(words, text, re.IGNORECASE)}


def licence_in_metadata(package: Distribution) -> str:
    """The licence expression, or what the classifiers name, or the first line of the licence field."""
    metadata = package.metadata
    classifiers = [value.split(" :: ")[-1] for value in metadata.get_all("Classifier") or [] if value.startswith("License ::")]
    field = (metadata.get("License") or "").strip().splitlines()
    return metadata.get("License-Expression") or ", ".join(classifiers) or (field[0] if field else "")


ROWS = re.findall(r"^\| ([\w-]+) \| (.+) \|$", (ROOT / "LICENSES.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
LICENCES = dict(ROWS)


def test_the_table_has_every_locked_package():
    assert [name for name, _ in ROWS] == sorted(LOCKED_NAMES)


@pytest.mark.parametrize("name", LICENCES)
def test_a_licence_is_permissive_or_known(name):
    found = families(LICENCES[name])
    if name in WITHOUT_METADATA or of_nvidia(name):
        assert found >= {"own terms"}
    else:
        assert found and found <= OTHERS.get(name, PERMISSIVE)


def test_installed_packages_name_the_licence_of_the_table():
    for name, package in tree().items():
        named = families(licence_in_metadata(package))
        assert named == (set() if name in WITHOUT_METADATA else families(LICENCES[name])), f"{name}: {licence_in_metadata(package)}"


# ---------------------------------------------------------------- make audit


@pytest.fixture
def audit(tmp_path):
    """``audit(text, status)``: status, stdout and stderr of ``make audit`` with a pip-audit that prints and ends so."""

    def run(text: str, status: int) -> tuple[int, str, str]:
        program = tmp_path / "bin" / "pip-audit"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
        program.chmod(0o755)
        command = ["make", "--no-print-directory", "--old-file=.venv/installed", "audit", f"AUDIT={tmp_path}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return ended.returncode, ended.stdout, ended.stderr

    return run


def test_make_audit_shows_what_is_known(audit):
    assert audit("No known vulnerabilities found", 0) == (0, "No known vulnerabilities found\n", "")


def test_make_audit_fails_if_a_package_is_vulnerable(audit):
    status, out, err = audit("Found 2 known vulnerabilities in 1 package\nnumpy 1.0 PYSEC-1", 1)
    assert status and "numpy 1.0 PYSEC-1" in out and "error: make audit" not in err


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("No known vulnerabilities found\ntorch  Dependency not found on PyPI and could not be audited: torch (2.13.0)", 0),
        ("Traceback (most recent call last):\nrequests.exceptions.ConnectionError: Max retries exceeded", 1),
        ("ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", 1),
        ("", 0),
    ],
)
def test_make_audit_tells_in_one_line_that_nothing_is_known(text, status, audit, tmp_path):
    code, out, err = audit(text, status)
    line = "error: make audit: the vulnerability service cannot be reached or does not know all packages, so nothing is known; see "
    assert (code, out, err.splitlines()[0]) == (2, "", f"{line}{tmp_path}/report.txt")
