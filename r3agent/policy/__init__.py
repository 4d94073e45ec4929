"""Models behind endpoints: their completions, how trainable these are, and the version that answered."""

from r3agent.policy.base import (
    Access,
    Paced,
    Pinnable,
    Policy,
    Pooled,
    Renamable,
    Route,
    Routed,
    Sampling,
    Versioned,
    prices_of,
    sampling_of,
)
from r3agent.policy.openai import OpenAIPolicy

__all__ = [
    "Access",
    "OpenAIPolicy",
    "Paced",
    "Pinnable",
    "Policy",
    "Pooled",
    "Renamable",
    "Route",
    "Routed",
    "Sampling",
    "Versioned",
    "prices_of",
    "sampling_of",
]
