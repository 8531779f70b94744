"""The training stage: one student under a head per teacher, then probes."""
