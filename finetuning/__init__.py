"""Fine-tuning on the downstream tasks, and the tables of results."""

import pretraining  # noqa: F401  # handles Ctrl-C while a command imports its packages
