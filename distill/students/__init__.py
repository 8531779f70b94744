"""Students, a file per modality."""
