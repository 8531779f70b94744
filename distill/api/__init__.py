"""Fitting and evaluating students from Python, with the classes, defaults and run folders of the command line."""
