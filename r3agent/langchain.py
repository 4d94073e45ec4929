"""Deprecated name of `r3agent.policy.langchain`."""

from warnings import warn

from r3agent.policy.langchain import ChatModelPolicy as ChatModelPolicy

warn(
    "r3agent.langchain is now r3agent.policy.langchain; r3agent.langchain is removed in 0.3",
    DeprecationWarning,
    stacklevel=2,
)
