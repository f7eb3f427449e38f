"""Commands beside the pretraining itself: first weights, segmenter, comparison, report, export, demo."""
