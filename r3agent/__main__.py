"""`python -m r3agent`, the same as `r3agent`."""

from r3agent.cli.main import run

run()
