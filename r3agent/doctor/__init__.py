"""Probe what an endpoint supports, with a few cheap requests that change nothing on the server.

probe       the requests
generation  tokens, logprobs and their lengths, mode by mode
sampler     samples compared with their logprobs
routes      changing weights
diagnosis   all checks, and the tier
report      plain text
"""

from r3agent.doctor.diagnosis import diagnose
from r3agent.doctor.records import Check, Diagnosis
from r3agent.doctor.report import report

__all__ = ["Check", "Diagnosis", "diagnose", "report"]
