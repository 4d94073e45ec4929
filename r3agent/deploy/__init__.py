"""New weights onto a running server: load, compare with the checkpoint's own logprobs, then move the live pointer.

One file for each way of changing a server's weights; the routes are vLLM's, which the embedded server has too.
"""

from r3agent.deploy.config import DeployConfig
from r3agent.deploy.deployment import DeployReport, LoadReport, deploy, load_version, rollback
from r3agent.deploy.fingerprint import CanaryReport

__all__ = ["CanaryReport", "DeployConfig", "DeployReport", "LoadReport", "deploy", "load_version", "rollback"]
