"""Corpora, one file per modality."""
