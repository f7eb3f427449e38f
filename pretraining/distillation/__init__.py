"""From training batches to a student."""
