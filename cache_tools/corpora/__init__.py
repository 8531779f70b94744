"""Corpora, a file per modality."""
