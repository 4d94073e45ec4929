"""x"""
from r3agent.sandbox.process import LAYERS, Layer, Limits, Outcome, run_dialogue, run_python

__all__ = ["LAYERS", "Layer", "Limits", "Outcome", "run_dialogue", "run_python"]
