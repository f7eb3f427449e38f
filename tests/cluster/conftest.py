"""Two Slurm nodes for the tests of this folder, started once; without Slurm they are skipped, and the reason says what to install."""

import pytest

from tests.cluster.two_nodes import TwoNodes, missing, two_nodes


@pytest.fixture(scope="session")
def started_nodes():
    if absent := missing():
        pytest.skip(absent)
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def cluster(started_nodes) -> TwoNodes:
    """The two nodes without a job."""
    yield started_nodes
    started_nodes.end_jobs()
