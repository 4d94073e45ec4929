"""Models behind endpoints: what they sampled, how trainable it is, and which version answered."""

from r3agent.policy.base import Pinnable, Policy, Sampling
from r3agent.policy.openai import OpenAIPolicy

__all__ = ["OpenAIPolicy", "Pinnable", "Policy", "Sampling"]
