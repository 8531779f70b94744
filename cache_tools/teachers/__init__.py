"""Teachers, one class each; a teacher imports the libraries that it needs when it loads."""
