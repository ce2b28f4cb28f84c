"""The command line. All printing lives here, and a command imports what it needs when it runs."""

from intact.cli.group import main as main
