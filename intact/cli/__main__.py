"""Runs the command line: `python -m intact.cli`."""

from intact.cli import main

main()
