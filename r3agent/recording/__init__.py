"""Recording from running applications, whatever they are built with, and the truth that comes later."""
