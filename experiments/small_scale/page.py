"""The text of RESULTS.md."""

import time

from experiments.small_scale import history, tables
from experiments.small_scale.measured import Curve, Experiment
from experiments.small_scale.speed import speed_tables
from pretraining.corpus.files import read_json

DRY_RUN = """> **This is the report of a dry run** (`--scale dry`): tiny models, a few steps, a few examples, on a CPU.
> It shows that every stage and every table works. It **says nothing about the claims** and nothing about speed.

"""


def page(experiment: Experiment, curves: dict[str, Curve]) -> str:
    """The whole file.

    Args:
        curves: of every training run, by name.
    """
    events = history.read_history(experiment.work)
    return f"""# Results of the small-scale experiment

{DRY_RUN if experiment.is_dry else ""}`run.py` writes this file; do not edit it. `README.md` of the experiment has the question, the method and the rule.

## Verdicts

{tables.claims_table(experiment)}

As published: the mean difference in the published tables, over the same tasks or those named. There, (b) is MiniRBT-H256 minus RBT4-H312.

## Models and budgets

{tables.budgets_table(experiment)}

Encoder: the Transformer layers only, without embeddings and head.

## Masked-LM on the dev articles

{tables.masked_lm_table(experiment)}

## Fine-tuning

{tables.result_tables(experiment)}

{fine_tuning_note(experiment)}

### Every learning rate

{tables.rates_table(experiment)}

First metric, mean ± standard deviation over the seeds; the best one in bold.

### The differences, task by task

{tables.by_task_table(experiment)}

These decide nothing. Intervals by the same method, over {len(experiment.seeds)} seeds.

## Training curves

![Losses of all students over the tokens they have seen](training.png)

## Speed and memory

{speed_tables(experiment, curves, events)}

## How it was run

{how_it_was_run(experiment, events)}
"""


def fine_tuning_note(experiment: Experiment) -> str:
    """Epochs, batch and the number of examples."""
    settings = experiment.settings
    limits = [f"- {task.name}: {task.train:,} training examples, {task.dev:,} dev examples at most" for task in settings.tasks]
    heading = f"Epochs: {settings.epochs}. Batches of {settings.finetune_batch}. The first examples of each file:"
    return "\n".join([heading, "", *limits])


def how_it_was_run(experiment: Experiment, events: list[history.Event]) -> str:
    """Commit, time, machine, repetitions, settings and commands."""
    machine = read_json(experiment.work / "data" / "machine.json", "what the experiment ran on")
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) for seconds in history.first_and_last(events))
    versions = f"Python {machine['Python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    settings = "\n".join(experiment.settings.lines())
    return f"""Commit {", ".join(history.commits(events))}; {first} to {last} UTC; {machine["device"]}; {versions}.

Jobs that failed or began more than once:

{history.repeated_jobs(events)}

<details><summary>Settings</summary>

```
{settings}
```

</details>
<details><summary>Commands, in pretraining/</summary>

```sh
{history.commands_block(experiment.work)}
```

</details>"""
