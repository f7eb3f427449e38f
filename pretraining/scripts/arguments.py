"""Argument types that several of these commands share."""

import argparse
from pathlib import Path

from pretraining.utils import named_path


class NamedPaths(argparse.Action):
    """Stores ``NAME=PATH NAME=PATH ...`` as ``dict[str, Path]`` in the given order; refuses a name that occurs twice."""

    def __init__(self, **settings):
        super().__init__(type=named_path, nargs="+", **settings)

    def __call__(self, parser, namespace, values, option_string=None):
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
