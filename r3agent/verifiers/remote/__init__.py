"""Tests in one process, the answer that they test in another: what runs in each, as source that the sandbox is given.

Only plain data comes from the answer to its tests: it is taken apart there and put together anew here, so nothing
that an answer defines, an `__eq__` that is always true or an `assert` that never is, runs where the verdict is made.
"""
