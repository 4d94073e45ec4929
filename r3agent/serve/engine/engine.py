"""Batched decode loop, in its own thread.

Sequences join and leave the batch between the steps of a loop over the model's own forward (continuous batching). With
64 clients the server reaches three quarters of the tokens/s of a bare `model.generate`
(`benchmarks/serve_throughput.py`). Measured on the bundled architecture at batch 64 on one core: `model.generate`
spends four fifths of its time in `DynamicCache`, which copies all keys and values at every step. transformers'
continuous batching reaches a quarter of `generate`'s tokens/s, because on a CPU each token attends to every page of its
pool, and it does not support adapters.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Literal, TypeAlias

import torch

from r3agent._util.cores import cpu_quota
from r3agent.errors import ConfigError
from r3agent.serve.engine.batch import Batch
from r3agent.serve.engine.lora import Adapter
from r3agent.serve.engine.model import ServedModel
from r3agent.serve.engine.request import GenerationRequest, SequenceState
from r3agent.serve.engine.scheduler import Admission, ControlOperation
from r3agent.serve.engine.text import TextStream
from r3agent.serve.errors import APIError, server_error

logger = logging.getLogger(__name__)

PauseMode: TypeAlias = Literal["abort", "wait", "keep"]


class Engine:
    """Batched generation for many requests. Its public methods may be called from any thread.

    Args:
        served: served model; from now on only the engine's thread accesses its weights.
        max_batch: maximum number of sequences generated at the same time.
        max_waiting: maximum number of waiting sequences; more are refused with 503.
        kv_cache_gib: memory of the KV cache.
        threads: torch's threads; default one less than torch's own or than a container's quota of cores, which is for
            HTTP: on two cores a second thread halves the tokens/s of 64 clients (`benchmarks/serve_throughput.py`), as
            each matrix product waits for it.

    Raises:
        ConfigError: a limit is below 1, or the memory is too small for one sequence of maximum length.
    """

    def __init__(
        self,
        served: ServedModel,
        *,
        max_batch: int = 256,
        max_waiting: int = 4096,
        kv_cache_gib: float = 4.0,
        threads: int | None = None,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_waiting", max_waiting), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        max_tokens = int(kv_cache_gib * 2**30 / served.kv_bytes_per_token)
        if max_tokens < served.max_model_len:
            raise ConfigError(
                f"kv_cache_gib = {kv_cache_gib:g} holds {max_tokens} tokens, fewer than max_model_len = "
                f"{served.max_model_len}: raise it, or lower max_model_len"
            )
        self.served = served
        self._max_waiting = max_waiting
        self._threads = threads
        self._batch = Batch(served.model)
        self._admission = Admission(max_batch, max_tokens)
        self._unfinished: set[GenerationRequest] = set()
        self._cancelled: set[GenerationRequest] = set()
        self._control_queue: list[ControlOperation] = []
        self._paused = self._frozen = self._closing = False
        self._rng = random.Random()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="r3agent-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; unfinished requests fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def is_paused(self) -> bool:
        return self._paused

    @property
    def load(self) -> int:
        """Return the number of unfinished requests."""
        return len(self._unfinished)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its progress is reported to its `on_event`.

        Raises:
            APIError: the queue is full, or the engine stopped.
        """
        request.sequences.extend(self._new_sequence(request, index) for index in range(request.n))
        with self._changed:
            self._require_running()
            if len(self._admission) + request.n > self._max_waiting:
                raise APIError(
                    f"{len(self._admission)} completions are waiting and {request.n} more were asked for, the limit is "
                    f"{self._max_waiting}; try again later, or start the server with a larger --max-waiting",
                    HTTPStatus.SERVICE_UNAVAILABLE,
                )
            self._unfinished.add(request)
            self._admission.extend(request.sequences)
            self._changed.notify()

    def cancel(self, request: GenerationRequest) -> None:
        """Drop a request before the next step; `on_event` is not called again."""
        with self._changed:
            self._cancelled.add(request)
            self._changed.notify()

    def pause(self, mode: PauseMode) -> Future[None]:
        """Stop admitting requests; abort the running ones, wait for them, or keep them frozen."""
        self._paused = True
        if mode == "wait":
            return self.when_empty(lambda: None)
        return self._enqueue(ControlOperation(lambda: True, self._abort_all if mode == "abort" else self._freeze))

    def resume(self) -> None:
        with self._changed:
            self._paused = self._frozen = False
            self._changed.notify()

    def when_empty(self, run: Callable[[], None]) -> Future[None]:
        """Call `run` in the engine's thread once the batch is empty; waiting sequences stay queued until then.

        Raises:
            APIError: the batch is frozen and would never be empty.
        """
        if self._frozen and self._batch.sequences:
            raise APIError(f"{len(self._batch.sequences)} completions are held by /pause?mode=keep: /resume first")
        return self._enqueue(ControlOperation(lambda: not self._batch.sequences, run, blocks_admission=True))

    def when_unused(self, adapter: Adapter) -> Future[None]:
        """Wait until no request uses the adapter, or the engine is paused."""

        def is_unused() -> bool:
            return self._paused or all(request.adapter is not adapter for request in self._unfinished)

        return self._enqueue(ControlOperation(is_unused, lambda: None))

    def _enqueue(self, operation: ControlOperation) -> Future[None]:
        with self._changed:
            self._require_running()
            self._control_queue.append(operation)
            self._changed.notify()
        return operation.done

    def _require_running(self) -> None:
        if not self.is_running:
            raise _stopping()

    def _new_sequence(self, request: GenerationRequest, index: int) -> SequenceState:
        """Make one of a request's n sequences; if it has a seed, theirs are consecutive, as in vLLM."""
        rng = self._rng if request.seed is None else random.Random(request.seed + index)
        text = TextStream(self.served.tokenizer, request.stop) if request.stop or request.stream else None
        return SequenceState(request, index, rng, text)

    # ---- the engine's thread ----

    def _run(self) -> None:
        quota, own = cpu_quota(), torch.get_num_threads()  # torch does not see a quota
        threads = own if quota is None else min(own, int(quota))
        torch.set_num_threads(self._threads or max(1, threads - 1))
        try:
            with torch.inference_mode():
                while self._wait():
                    self._step()
        finally:
            with self._changed:
                self._closing = True
            self._fail(self._unfinished.copy(), _stopping())
            for operation in self._control_queue:
                operation.done.set_exception(_stopping())

    def _wait(self) -> bool:
        """Sleep until there is work; return False if the engine must stop."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            return not self._closing

    def _has_work(self) -> bool:
        generates = not self._frozen and (bool(self._batch.sequences) or self._admits)
        interrupted = self._closing or bool(self._cancelled)
        return generates or interrupted or any(operation.is_ready() for operation in self._control_queue)

    @property
    def _admits(self) -> bool:
        blocked = self._paused or any(operation.blocks_admission for operation in self._control_queue)
        return len(self._admission) > 0 and not blocked

    def _step(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            operations = [operation for operation in self._control_queue if operation.is_ready()]
            self._control_queue = [operation for operation in self._control_queue if operation not in operations]
        if cancelled:
            self._drop(cancelled)
        for operation in operations:
            operation()
        with self._changed:
            joining = self._admission.take(self._batch.sequences) if self._admits else []
        if joining:
            self._forward(joining, lambda: self._batch.prefill(joining))
        if self._batch.sequences and not self._frozen:
            self._forward(self._batch.sequences, self._batch.decode)

    def _forward(self, sequences: Iterable[SequenceState], run: Callable[[], None]) -> None:
        """Run the model for some sequences and report the result to their requests."""
        requests = {sequence.request for sequence in sequences}
        try:
            run()
        except Exception as error:
            self._fail(requests, error)
            return
        for sequence in self._batch.sequences:
            request = sequence.request
            if request.stream and request in requests and request.error is None:
                request.on_event(sequence.chunk())
        for request in {sequence.request for sequence in self._batch.drop_finished()}:
            if request.error is not None:
                self._fail({request}, request.error)
            elif request.is_finished:
                self._unfinished.discard(request)
                request.on_event(None)

    def _drop(self, requests: set[GenerationRequest]) -> None:
        """Remove requests from the queue and the batch."""
        with self._changed:
            self._admission.remove(requests)
            self._unfinished -= requests
        for sequence in self._batch.sequences:
            if sequence.request in requests and sequence.finish_reason is None:
                sequence.finish("abort")
        self._batch.drop_finished()

    def _fail(self, requests: set[GenerationRequest], error: Exception) -> None:
        if not isinstance(error, APIError):
            logger.error("generation failed", exc_info=error)
        self._drop(requests)
        for request in requests:
            request.on_event(server_error(error))

    def _abort_all(self) -> None:
        """Finish all running requests with their current tokens; `finish_reason` is "abort", as in vLLM."""
        aborted = self._unfinished.copy()
        for request in aborted:
            for sequence in request.sequences:
                if sequence.finish_reason is None:
                    sequence.finish("abort")
                    if request.stream:
                        request.on_event(sequence.chunk())
        self._drop(aborted)
        for request in aborted:
            request.on_event(None)

    def _freeze(self) -> None:
        self._frozen = True


def _stopping() -> APIError:
    return APIError("the server is stopping", HTTPStatus.SERVICE_UNAVAILABLE)
