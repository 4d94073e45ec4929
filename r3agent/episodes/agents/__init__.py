"""Agents: what produces a try of several steps."""
