"""Audit of tasks and their verifier before any tokens are spent; `served` also samples a policy."""

from r3agent.audit.audit import audit
from r3agent.audit.config import AuditConfig
from r3agent.audit.lengths import Lengths
from r3agent.audit.records import Audit, Check
from r3agent.audit.report import report
from r3agent.audit.served import ServedModel

__all__ = ["Audit", "AuditConfig", "Check", "Lengths", "ServedModel", "audit", "report"]
