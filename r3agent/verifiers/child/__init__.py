"""Modules that run without the package in child processes, which are killed when they exceed a limit.

Some are called by a worker, through `serve.py`. SQL runs in one process (`querying.py`). Code needs two, which
communicate over `wire.py`: one for the tests (`judging.py`) and one for the answer under test (`answering.py`).
Only plain data passes from the answer to its tests: values are serialised there and rebuilt here. So nothing that an
answer defines, such as an `__eq__` that is always true, runs in the process that makes the verdict.
"""
