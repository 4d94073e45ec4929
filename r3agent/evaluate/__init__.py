"""Comparison of policies: rates with intervals, paired differences on the same tasks, and the promotion gate."""

from r3agent.evaluate.comparison import Comparison, Decision, compare, gate
from r3agent.evaluate.metrics import CELLS, Cell, Evaluation, evaluate
from r3agent.evaluate.statistics import Difference, Rate, spend_alpha, wilson
from r3agent.evaluate.table import table

__all__ = [
    "CELLS",
    "Cell",
    "Comparison",
    "Decision",
    "Difference",
    "Evaluation",
    "Rate",
    "compare",
    "evaluate",
    "gate",
    "spend_alpha",
    "table",
    "wilson",
]
