"""torchrun, without its reports: the user reads the lines of the processes, and one line for a process that a signal killed.

    python -m pretraining.launching.torchrun --nproc_per_node=2 train.py ...

The status is that of the process that failed first. A stop signal is passed on to the processes once; the status is then 128 + its number.
"""

import logging
import signal
import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from pretraining.utils import STOP_SIGNALS, UserError, first_line, run_script


def main(argv: list[str] | None = None) -> None:
    """Starts the processes, waits for them, exits with their status.

    Raises:
        UserError: a signal killed a process, or the machines cannot reach each other.
    """
    logging.disable(logging.ERROR)  # torchrun's warnings while it stops the processes
    pass_stop_signals_on()
    args = parse_args(argv)
    args.signals_to_handle = "SIGQUIT"  # the others are handled here
    try:
        run(args)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        end_as(list(error.failures.values()))
    except DistError as error:
        raise UserError(f"--master_addr {args.master_addr}, --master_port {args.master_port}: {first_line(error)}") from None


def pass_stop_signals_on() -> None:
    """Has the first stop signal end torchrun, which passes it on and waits for the processes; later ones change nothing."""
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def stop(number: int, frame: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise SignalException(f"stopped by {signal.Signals(number).name}", signal.Signals(number))

    for number in handled:
        signal.signal(number, stop)


def end_as(failures: list[ProcessFailure]) -> None:
    """Ends with the status of the process that failed first; torchrun has stopped the others by then, which gives them one, too."""
    first = min(failures, key=lambda failure: _how_late(failure.exitcode))
    if first.exitcode > 0:
        sys.exit(first.exitcode)
    name = signal.Signals(-first.exitcode).name
    print(file=sys.stderr)  # the line of a progress bar may not have ended
    reason = "; is the machine out of memory?" if name == "SIGKILL" else ""
    raise UserError(f"process {first.local_rank} of this machine was killed by {name}{reason}; run the same command again to resume")


def _how_late(status: int) -> int:
    """Orders how processes of one run ended: with an error of their own, killed, stopped by a signal, by torchrun's SIGTERM."""
    if status > 0:
        return 0 if status < 128 else 2
    return 3 if status == -signal.SIGTERM else 1


if __name__ == "__main__":
    run_script(main)
