"""Probe what an endpoint can do, with a few cheap requests that leave it as it was.

probe      the requests        generation  tokens, logprobs and their lengths, mode by mode
routes     changing weights    diagnosis   all of it, and the tier
report     as a table
"""

from r3agent.doctor.diagnosis import diagnose
from r3agent.doctor.records import Check, Diagnosis
from r3agent.doctor.report import report

__all__ = ["Check", "Diagnosis", "diagnose", "report"]
