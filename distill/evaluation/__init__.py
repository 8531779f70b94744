"""Evaluation: a frozen student probed on downstream tasks beside its teachers and other baselines."""
