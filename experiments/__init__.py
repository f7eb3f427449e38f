"""Experiments with this project's own scripts, a package each."""
