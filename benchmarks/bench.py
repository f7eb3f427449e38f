"""Times every stage against its stock peer, both in turn on the same input, and prints one table.

    python benchmarks/bench.py
    python benchmarks/bench.py --corpus zhwiki.txt --vocab vocab.txt --ltp ltp_directory --full

Every group of stages runs in a process of its own. A round runs both sides one after the other. The table has the medians of the
rounds and, of the rounds' ratios, the median, the least and the greatest. The targets are for two CPU cores, length 512 and models of
real size with random weights.
"""

import os
import pkgutil
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.processes import in_fresh_process
from benchmarks.rows import Row, print_table, write_json
from pretraining.corpus.files import require_file
from pretraining.utils import ArgumentParser, positive_int, run_script

# The functions by name: their modules take seconds to import, and only the process that runs a stage needs them.
PREPARE = "benchmarks.data_stages:prepare"
STAGES = {
    "step": "benchmarks.training_stages:step_stage",
    "memory": "benchmarks.training_stages:memory_stage",
    "masking": "benchmarks.data_stages:masking_stage",
    "shards": "benchmarks.data_stages:shards_stage",
    "loader": "benchmarks.training_stages:loader_stage",
    "my_datasets": "benchmarks.data_stages:my_datasets_stage",
    "references": "benchmarks.data_stages:references_stage",
    "neural": "benchmarks.data_stages:neural_stage",
    "text_memory": "benchmarks.data_stages:text_memory_stage",
}
ONE_CORE = {"masking", "shards", "my_datasets"}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--corpus", help="a text file; its first 4 MB are the input (default: the sample corpus, repeated)")
    parser.add_argument("--vocab", help="a vocab.txt (default: the characters of the corpus, filled up to 21128 entries)")
    parser.add_argument("--ltp", help="a legacy LTP directory (default: one trained on the sample's segmented sentences)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), help="run these stages only")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed rounds of a stage, after one that warms up")
    parser.add_argument("--full", action="store_true", help="measure the peak memory on 100 and 200 MB of text, not on 8 and 16 MB")
    parser.add_argument("--output", default=Path(__file__).with_name("bench.json"), help="where the rows are written as JSON")
    args = parser.parse_args(argv)
    for path, what in ((args.corpus, "the corpus"), (args.vocab, "a BERT vocabulary")):
        if path:
            require_file(path, what)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="minirbt_bench_") as work:
        in_fresh_process(call, PREPARE, Path(work), args)
        try:
            with tqdm(args.only, unit=" stages") as bar:
                for name in bar:
                    bar.set_description(name)
                    rows += in_fresh_process(call, STAGES[name], Path(work), args, one_core=name in ONE_CORE)
        finally:  # a stage that fails must not lose the rows of the others
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds; one of neural LTP and of memory")
            print_table(rows)
            write_json(args.output, rows)


def call(name: str, *arguments: Any) -> Any:
    """Imports and calls the function ``module:function``."""
    return pkgutil.resolve_name(name)(*arguments)


if __name__ == "__main__":
    run_script(main)
