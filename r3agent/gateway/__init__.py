"""Gateway: a proxy of model endpoints that records the calls of any program."""
