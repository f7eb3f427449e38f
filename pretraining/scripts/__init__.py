"""One-off commands around the pretraining, and the helpers that they share."""
