"""Teachers, one class each; the libraries that they need are imported when they load."""
