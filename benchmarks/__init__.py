"""The benchmarks: every stage against its stock peer (bench.py), a training step on a GPU (gpu.py), the start of a run (startup.py)."""
