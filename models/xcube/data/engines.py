"""Where the work on a data set is done: in this process, in others on this machine, on a cluster.

An engine takes a function that processes can import, and what to call it with. It yields pairs of an input and its
result as they come, in no order, and has a bounded number of inputs under way, so memory does not grow with their
number. An input whose process dies is not lost among the others: its result is None.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

import torch

Input = TypeVar("Input")
Result = TypeVar("Result")

AHEAD = 2  # inputs under way for each worker: one at work, one that waits


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(function: Callable[[Input], Result], inputs: Iterable[Input]) -> Generator[tuple[Input, Result | None]]:
    """In this process, with one thread, as workers do it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for each in inputs:
            yield each, function(each)
    finally:
        torch.set_num_threads(threads)


def run_processes(
    function: Callable[[Input], Result], inputs: Iterable[Input], workers: int
) -> Generator[tuple[Input, Result | None]]:
    """In processes of this machine, of one thread each, that end when this one does.

    If one dies, its pool is lost. What was under way then is done again in a process of its own, one after the other,
    so that it is known which of them was to blame.
    """
    waiting = iter(inputs)
    pool = _pool(workers)
    pending: dict[Future[Result], Input] = {}
    try:
        while True:
            suspects: list[Input] = []
            try:
                for each in islice(waiting, AHEAD * workers - len(pending)):
                    suspects = [each]
                    future = pool.submit(function, each)
                    pending[future] = suspects.pop()
            except BrokenProcessPool:  # it died between two results, and `each` stays a suspect
                pass
            if not pending and not suspects:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                done, _ = wait(pending)
            for future in done:
                each = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(each)
                else:
                    yield each, future.result()
            if suspects:
                pool.shutdown()
                yield from _alone(function, suspects)
                pool = _pool(workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(function: Callable[[Input], Result], inputs: Iterable[Input]) -> Generator[tuple[Input, Result | None]]:
    for each in inputs:
        with _pool(1) as pool:
            try:
                yield each, pool.submit(function, each).result()
            except BrokenProcessPool:
                yield each, None


def _pool(workers: int) -> ProcessPoolExecutor:
    # Never a plain fork: locks that threads hold stay locked in it. A server that forks imports PyTorch once.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), prepare_worker)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xcube.data.build", "trimesh"])
    return ProcessPoolExecutor(workers, context, prepare_worker)


def prepare_worker(threads: int = 1) -> None:
    """What a worker does first: it ends with its parent, and leaves interrupts to it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and lets the work under way end
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_ray(
    function: Callable[[Input], Result], inputs: Iterable[Input], workers: int
) -> Generator[tuple[Input, Result | None]]:
    """As tasks of Ray, on the cluster that `ray.init` finds, or on this machine.

    Every node has to see the files under the same paths.

    Raises:
        ImportError: If Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("the engine 'ray' needs Ray: pip install 'sparsevox[ray]'") from error
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else workers, include_dashboard=False)
    task = ray.remote(num_cpus=1, max_retries=1)(_call)
    waiting = iter(inputs)
    pending: dict[Any, Input] = {}
    try:
        while True:
            for each in islice(waiting, AHEAD * workers - len(pending)):
                pending[task.remote(function, each)] = each
            if not pending:
                return
            done, _ = ray.wait(list(pending), num_returns=1)
            each = pending.pop(done[0])
            try:
                yield each, ray.get(done[0])
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                yield each, None
    finally:
        for reference in pending:
            ray.cancel(reference)
        if started:
            ray.shutdown()


def _call(function: Callable[[Input], Result], each: Input) -> Result:
    return function(each)  # Ray takes functions only, not everything that can be called
