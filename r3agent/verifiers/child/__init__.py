"""Modules that run in processes without the package, which are ended when they go over a limit.

Some are called by a worker, through `serve.py`. SQL is queried in one process (`querying.py`). Code takes two, which
speak over `wire.py`: the tests in one
(`judging.py`), the answer that they test in the other (`answering.py`).
Only plain data comes from the answer to its tests: it is taken apart there and put together anew here, so nothing
that an answer defines, an `__eq__` that is always true or an `assert` that never is, runs where the verdict is made.
"""
