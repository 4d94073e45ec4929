"""Admission of waiting sequences to the batch, and control operations between decode steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from r3agent.serve.engine.request import GenerationRequest, SequenceState

MAX_PREFILL_TOKENS = 2048
"""Maximum tokens of one prefill, including padding; it bounds the delay of the running sequences."""
MAX_STEPS_WAITED = 4
MIN_JOINING = 1 / 8
"""Share of the batch that joins without waiting. A prefill costs about as much for one sequence as for a few, so
while the batch is busy, fewer sequences wait up to `MAX_STEPS_WAITED` steps for others."""


class Admission:
    """Queue of waiting sequences, first come first served.

    Args:
        max_batch: maximum number of sequences generated at the same time.
        max_tokens: limit of the batch size times the maximum length of its sequences.
    """

    def __init__(self, max_batch: int, max_tokens: int) -> None:
        self._max_batch = max_batch
        self._max_tokens = max_tokens
        self._waiting: deque[SequenceState] = deque()
        self._steps_waited = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def extend(self, sequences: Iterable[SequenceState]) -> None:
        self._waiting.extend(sequences)

    def remove(self, requests: set[GenerationRequest]) -> None:
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request not in requests)

    def take(self, batch: Sequence[SequenceState]) -> list[SequenceState]:
        """Remove and return the sequences that join `batch` now; called once per step."""
        self._steps_waited += 1
        if len(self._waiting) < MIN_JOINING * len(batch) and self._steps_waited < MAX_STEPS_WAITED:
            return []
        self._steps_waited = 0
        joining: list[SequenceState] = []
        longest = max((sequence.request.max_length for sequence in batch), default=0)
        prompts: dict[GenerationRequest, int] = {}
        while self._waiting:
            request = self._waiting[0].request
            size = len(batch) + len(joining) + 1
            longest = max(longest, request.max_length)
            if size > self._max_batch or size * longest > self._max_tokens or not _fits(prompts, request):
                break
            prompts[request] = len(request.prompt_token_ids)
            joining.append(self._waiting.popleft())
        return joining


def _fits(prompts: dict[GenerationRequest, int], request: GenerationRequest) -> bool:
    """Return True if a request's prompt fits into the same forward pass as `prompts`."""
    if not prompts or request in prompts:
        return True
    if request.prompt_logprobs is not None or any(r.prompt_logprobs is not None for r in prompts):
        return False  # scoring keeps the logits of every position
    return (len(prompts) + 1) * max(*prompts.values(), len(request.prompt_token_ids)) <= MAX_PREFILL_TOKENS


@dataclass(eq=False)
class ControlOperation:
    """Operation from another thread that the engine's thread runs between two steps, once it is ready."""

    is_ready: Callable[[], bool]
    run: Callable[[], None]
    blocks_admission: bool = False
    """Keep sequences from joining the batch until it has run."""
    done: Future[None] = field(default_factory=Future)

    def __call__(self) -> None:
        try:
            self.run()
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
