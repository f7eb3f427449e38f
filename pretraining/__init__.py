"""From raw Chinese text and a large BERT to a small BERT."""
