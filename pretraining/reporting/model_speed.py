"""Model speed: seconds for one forward of the encoder, the models in turn."""

from collections.abc import Callable
from statistics import median

import torch
from transformers import BertModel

from pretraining.reporting.machine import device_name, devices
from pretraining.reporting.published_models import published
from pretraining.reporting.tables import markdown_table
from pretraining.reporting.timing import TURN_SECONDS, time_in_turn

BATCH_SIZES = {"cpu": 4, "cuda": 64}

Seconds = dict[str, float]  # model -> seconds for one forward
Speeds = dict[tuple[str, int], Seconds]  # (device, sequence length) -> seconds


def batch_sizes(batch_size: int | None = None) -> dict[str, int]:
    """Rows of the timed input on each device: ``batch_size``, or the default of the device."""
    return {device: batch_size or BATCH_SIZES[device] for device in devices()}


def measure_speeds(encoders: dict[str, BertModel], rows: dict[str, int], lengths: list[int], rounds: int) -> Speeds:
    """Times the encoders on every device and at every length; leaves them on the last device.

    Args:
        rows: rows of the timed input on each device.
        lengths: tokens of a row.
    """
    return {
        (device, length): time_encoders(encoders, device, batch_size, length, rounds)
        for device, batch_size in rows.items()
        for length in lengths
    }


def time_encoders(encoders: dict[str, BertModel], device: str, batch_size: int, length: int, rounds: int) -> Seconds:
    """Times one forward in float32, for all models on the same random tokens without padding; medians over the rounds."""
    vocabulary = min(encoder.config.vocab_size for encoder in encoders.values())
    input_ids = torch.randint(vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(0)).to(device)
    runners = {name: _forward(encoder.to(device).eval(), input_ids) for name, encoder in encoders.items()}
    with torch.inference_mode():
        turns = time_in_turn(runners, rounds, TURN_SECONDS, f"{device.upper()} {batch_size} × {length}")
    return {name: median(values) for name, values in turns.items()}


def _forward(encoder: BertModel, input_ids: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        encoder(input_ids)
        if input_ids.is_cuda:
            torch.cuda.synchronize()

    return run


def speedups(seconds: Seconds) -> Seconds:
    """How many times as fast as the first model each model is."""
    first = next(iter(seconds.values()))
    return {name: first / value for name, value in seconds.items()}


def speed_headers(speeds: Speeds) -> list[str]:
    """A column header for each device and length."""
    return [f"{device.upper()}, {length} tokens" for device, length in speeds]


def speed_cells(name: str, speeds: Speeds) -> list[str]:
    """A model's table cells: speed-up and milliseconds per batch, for each device and length."""
    return [f"{speedups(seconds)[name]:.1f}× ({seconds[name] * 1e3:.1f} ms)" for seconds in speeds.values()]


def speed_table(speeds: Speeds) -> str:
    """Speed-up and milliseconds per batch of each model as Markdown, beside the published speed-up."""
    names = next(iter(speeds.values()))
    rows = [["Model", *speed_headers(speeds), "Published"]]
    rows += [[name, *speed_cells(name, speeds), published(name).speedup] for name in names]
    return markdown_table(rows)


def how_measured(rounds: int, rows: dict[str, int]) -> str:
    """The sentences that belong beside every speed-up; ``rows`` of a batch by device."""
    where = "; ".join(f"{device.upper()}: {device_name(device)}, {size} rows per batch" for device, size in rows.items())
    return (
        f"Speed-up: one forward of the encoder in float32 on the same random tokens, median of {rounds} rounds with the models in turn "
        f"after a warm-up. {where}; torch {torch.__version__}, {torch.get_num_threads()} CPU threads."
    )
