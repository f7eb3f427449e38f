"""Fine-tuning on the downstream tasks, and the tables of results."""
