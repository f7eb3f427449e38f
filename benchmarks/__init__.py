"""The benchmarks: every stage against its stock peer (bench.py), and a training step on a GPU (gpu.py)."""
