"""Comparison of policies: rates with intervals, paired differences on the same tasks, and the promotion gate."""

from r3agent.evaluate.behaviour import Behaviour, Length, LengthChange, PerSuccess
from r3agent.evaluate.cells import CELLS, Cell
from r3agent.evaluate.comparison import Comparison, compare
from r3agent.evaluate.decision import Decision, gate
from r3agent.evaluate.finding import finding
from r3agent.evaluate.forgetting import Forgetting, forgetting
from r3agent.evaluate.metrics import Evaluation, evaluate
from r3agent.evaluate.power import PowerPlan, plan_power, power, smallest_lift, tasks_needed
from r3agent.evaluate.statistics import Difference, Rate, spend_alpha, wilson
from r3agent.evaluate.table import table

__all__ = [
    "CELLS",
    "Behaviour",
    "Cell",
    "Comparison",
    "Decision",
    "Difference",
    "Evaluation",
    "Forgetting",
    "Length",
    "LengthChange",
    "PerSuccess",
    "PowerPlan",
    "Rate",
    "compare",
    "evaluate",
    "finding",
    "forgetting",
    "gate",
    "plan_power",
    "power",
    "smallest_lift",
    "spend_alpha",
    "table",
    "tasks_needed",
    "wilson",
]
