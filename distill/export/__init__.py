"""Export: a trained student as a folder that needs nothing else."""
