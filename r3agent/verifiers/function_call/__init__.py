"""Judge the function calls of a reply."""

from r3agent.verifiers.function_call.verdict import Expectation, function_call

__all__ = ["Expectation", "function_call"]
