"""Students, one file per modality."""
