"""Data: aligned batches of teachers' embeddings and student inputs, streamed from caches."""
