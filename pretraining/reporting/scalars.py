"""The TensorBoard scalars of a training run."""

from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ALL_STEPS = {"scalars": 0}  # TensorBoard would otherwise keep a random sample of 10,000 steps


class Scalars(NamedTuple):
    """The points of one tag, in the order of the steps.

    Attributes:
        steps: optimizer steps.
        values: what was logged at each step.
        wall_times: when it was logged, in seconds since 1970.
    """

    steps: list[int]
    values: list[float]
    wall_times: list[float]


def read_scalars(run: str | Path) -> dict[str, Scalars]:
    """Reads all steps of all scalars from the event files of a run.

    Args:
        run: the ``--output_dir`` of train.py.

    Returns:
        the points of each tag; tags as train.py wrote them, such as ``scalar/total_loss``. Without event files the dict is empty.
    """
    events = EventAccumulator(str(run), size_guidance=ALL_STEPS).Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        scalars[tag] = Scalars(
            steps=[point.step for point in points],
            values=[point.value for point in points],
            wall_times=[point.wall_time for point in points],
        )
    return scalars
