"""``python -m cache_tools.cli``."""

from cache_tools.cli import main

main()
