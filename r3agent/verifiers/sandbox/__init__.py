"""Run untrusted Python, unprivileged, in a sandbox or a container; `README.md` describes the protection."""

from r3agent.verifiers.sandbox.container import IMAGE, engine_command
from r3agent.verifiers.sandbox.layers import LAYERS, Layer
from r3agent.verifiers.sandbox.limits import Limits, Outcome
from r3agent.verifiers.sandbox.packages import Packages, find_packages
from r3agent.verifiers.sandbox.process import run_dialogue, run_python

__all__ = [
    "IMAGE",
    "LAYERS",
    "Layer",
    "Limits",
    "Outcome",
    "Packages",
    "engine_command",
    "find_packages",
    "run_dialogue",
    "run_python",
]
