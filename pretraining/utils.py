"""What every command uses: one-line errors, argument types, progress bars."""

import argparse
import errno
import math
import os
import re
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # a run finishes its step, writes a checkpoint and ends

# ---------------------------------------------------------------- errors


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message; some libraries add advice below it."""
    return f"{error}\n".splitlines()[0] or type(error).__name__


def run_script(main: Callable[[], None]) -> None:
    """Runs the ``main`` of a command.

    An error that the user can fix (see :func:`user_error_line`) ends the process with one line on stderr and status 2.
    Any other error is a fault of the program and ends with its traceback. ``MINIRBT_TRACEBACK=1`` shows the traceback of every error.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    warnings.filterwarnings("ignore", module=r"torch\._weights_only_unpickler")  # warns about a file that is refused anyway
    try:
        refuse_other_copy(Path(getattr(sys.modules["__main__"], "__file__", None) or "."))
        main()
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would break off the end of the process, with a traceback
        _show_traceback_if_asked(error)
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():  # "| head" has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the process flushes once more at its end
            sys.exit(128 + signal.SIGPIPE)
        line = user_error_line(error)
        if line is None:
            raise
        _show_traceback_if_asked(error)
        print("error:", " ".join(line.split()), file=sys.stderr)
        sys.exit(2)


def user_error_line(error: Exception) -> str | None:
    """What the user reads about an error that they can fix; None for a fault of the program, such as a refused connection.

    The user can fix a :class:`UserError`, a full GPU, a full disk, and what the file system answers about a file by its name.
    """
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's class; not every command imports torch
        return "out of GPU memory; is another program using the GPU? If not, use a smaller batch"
    if not isinstance(error, OSError) or not error.strerror:
        return None
    if error.errno and isinstance(error.filename, str | bytes):  # an HTTPError names an address, but has no errno
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return error.strerror if isinstance(error, PermissionError) or error.errno in (errno.ENOSPC, errno.EDQUOT) else None


def _is_output_closed() -> bool:
    """True if stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # no events but errors
    return bool(poll.poll(0))


def _show_traceback_if_asked(error: BaseException) -> None:
    """Prints the traceback if ``MINIRBT_TRACEBACK=1``, with the library's own error where the line replaces one."""
    if os.environ.get("MINIRBT_TRACEBACK") == "1":
        cause: BaseException | None = error
        while cause is not None:
            cause.__suppress_context__ = False
            cause = cause.__cause__ or cause.__context__
        traceback.print_exception(error)


def refuse_other_copy(script: Path) -> None:
    """Refuses a script of one clone that would import the packages of another, whose edits it would not see."""
    installed = Path(__file__).resolve().parents[1]
    clones = [folder for folder in script.resolve().parents if (folder / "pyproject.toml").is_file() and (folder / "pretraining").is_dir()]
    if clones and clones[0] != installed:
        raise UserError(f"{script}: the packages in use are those of {installed}; run pip install -e . in {clones[0]}")


# ---------------------------------------------------------------- arguments


class OneLineErrors:
    """Mixin for an ``argparse.ArgumentParser``: a wrong argument is one line, not a usage page."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--?[\w-]+)(?:/--?[\w-]+)*: ", r"\1: ", message)
        message = re.sub(r"^(--?[\w-]+): (?=\S+: )", r"\1 ", message)  # "--rounds 0: must be ..."
        raise UserError(f"{message} (see python {os.path.basename(sys.argv[0])} --help)")


class ArgumentParser(OneLineErrors, argparse.ArgumentParser):
    """The parser of every command but train.py. The help of an argument ends with its default.

    Args:
        description: the module's docstring; printed as it is written.
    """

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def add_argument(self, *flags: Any, **options: Any) -> argparse.Action:
        default, text = options.get("default"), options.get("help") or ""
        if default not in (None, False, {}, argparse.SUPPRESS) and "default:" not in text:
            shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
            options["help"] = f"{text}{'; ' if text else ''}default: {shown.replace('%', '%%')}"
        return super().add_argument(*flags, **options)


def positive_int(text: str) -> int:
    """A whole number above 0."""
    return _checked(text, _whole_number, lambda value: value > 0, "must be a whole number above 0")


def non_negative_int(text: str) -> int:
    """A whole number, 0 or above."""
    return _checked(text, _whole_number, lambda value: value >= 0, "must be a whole number, 0 or above")


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return _checked(text, float, lambda value: 0 < value < math.inf, "must be a number above 0")


def non_negative_float(text: str) -> float:
    """A finite number, 0 or above."""
    return _checked(text, float, lambda value: 0 <= value < math.inf, "must be a number, 0 or above")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _checked(text, float, lambda value: 0 <= value <= 1, "must be a number from 0 to 1")


def sequence_length(text: str) -> int:
    """Tokens of a sample, at least 4: [CLS], two tokens, [SEP]."""
    return _checked(text, _whole_number, lambda value: value >= 4, "must be a whole number, 4 or above")


def random_seed(text: str) -> int:
    """A seed for torch and NumPy."""
    return _checked(text, _whole_number, lambda value: value < 1 << 63, "must be a whole number from 0 to 2**63 - 1")


def network_port(text: str) -> int:
    """A TCP port."""
    return _checked(text, _whole_number, lambda value: 0 < value < 1 << 16, "must be a whole number from 1 to 65535")


def named_path(text: str) -> tuple[str, Path]:
    """``NAME=PATH``; the name is safe in Markdown and in file names."""
    name, _, path = text.partition("=")
    if not (path and re.fullmatch(r"[\w.+-]([\w .()+-]*[\w.()+-])?", name)):
        raise argparse.ArgumentTypeError(f"{text}: write NAME=PATH; a name has letters, digits, spaces and . _ - + ( ) only")
    return name, Path(path)


class NamedPaths(argparse.Action):
    """Stores ``NAME=PATH NAME=PATH ...`` as ``dict[str, Path]`` in the given order; refuses a name that occurs twice."""

    def __init__(self, **settings: Any):
        super().__init__(type=named_path, nargs="+", **settings)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        paths: dict[str, Path] = {}
        for name, path in values:
            if name in paths:
                raise argparse.ArgumentError(self, f"{name}={path}: the name {name} occurs twice; choose another")
            paths[name] = path
        setattr(namespace, self.dest, paths)


def output_directory(text: str) -> Path:
    """A directory to write into; it does not need to exist yet."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a file, not a directory")
    return path


def _whole_number(text: str) -> int:
    """Only digits; int() would also read +5, 1_0 and full-width digits."""
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError
    return int(text)


def _checked(text: str, convert: Callable[[str], Any], accepts: Callable[[Any], bool], rule: str) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not accepts(value):
        raise argparse.ArgumentTypeError(f"{text}: {rule}")
    return value


# ---------------------------------------------------------------- the machine


def cores_per_process() -> int:
    """The cores that this process may use, shared with the other processes of torchrun on this machine; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # schedulers leave a job few of all
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def set_torch_variables() -> None:
    """Sets what torch reads when it is imported; what the user has set stays."""
    compiler_processes = min(32, cores_per_process())  # 32 is torch's own limit
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(compiler_processes))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else twenty lines of C++ frames when a process is lost


# ---------------------------------------------------------------- progress


@contextmanager
def progress_bar(**settings: Any) -> Iterator[tqdm]:
    """A tqdm bar that disappears when its block fails, so that the error has its line to itself."""
    with tqdm(**settings) as bar:
        try:
            yield bar
        except BaseException:
            bar.leave = False
            raise
