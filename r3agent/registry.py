"""Deprecated name of `r3agent.store.registry`."""

from warnings import warn

from r3agent.store.registry import PolicyCard as PolicyCard
from r3agent.store.registry import Registry as Registry

warn(
    "r3agent.registry is now r3agent.store.registry; r3agent.registry is removed in 0.3",
    DeprecationWarning,
    stacklevel=2,
)
