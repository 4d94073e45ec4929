"""Deploy new weights to a running server: load, compare with the checkpoint's own logprobs, move the live pointer.

Each way of changing a server's weights has its own module. The routes are vLLM's; the embedded server has them too.
"""

from typing import Any
from warnings import warn

from r3agent.deploy.config import DeployConfig
from r3agent.deploy.deployment import deploy, load_version, rollback
from r3agent.deploy.fingerprint import FingerprintReport
from r3agent.deploy.report import DeployReport, LoadReport

__all__ = ["DeployConfig", "DeployReport", "FingerprintReport", "LoadReport", "deploy", "load_version", "rollback"]


def __getattr__(name: str) -> Any:
    """Resolve deprecated names."""
    if name == "CanaryReport":
        warn("CanaryReport is now FingerprintReport; CanaryReport is removed in 0.3", DeprecationWarning, stacklevel=2)
        return FingerprintReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
