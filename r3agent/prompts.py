"""The three requests that drive the loop, in the sense of the paper; each is an argument of `build_graph`.

The paper (arXiv 2505.24726) publishes the sense of its reflection request, not its wording. The policy is told
only that it failed: no gold answer and no error text.
"""

REFLECT = (
    "You tried the task and your answer is wrong. Reflect on what went wrong and write a short explanation "
    "that will help you do better next time."
)
RETRY = "Now try the task again, using your reflection."
BLIND_RETRY = "Your answer is wrong. Try the task again."
