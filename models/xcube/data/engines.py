"""Engines that build a dataset: in this process, in a pool of processes on this machine, or on a Ray cluster.

An engine calls a function, which must be importable, with each input. It yields pairs of an input and its result as
they finish, in any order, and keeps a bounded number of inputs in flight, so memory does not grow with their number. If
a process dies, the result of the input that it worked on is None; the other inputs are not affected.
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

AHEAD = 2  # inputs in flight per worker: one at work, one that waits


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(function: Callable[[Input], Result], inputs: Iterable[Input]) -> Generator[tuple[Input, Result | None]]:
    """Run in this process, with one thread like the workers."""
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
    """Run in processes of one thread each, which end when this process does.

    If one dies, its pool is lost. Inputs in flight are then processed again, one after the other, each in a process of
    its own, to find the one that killed it.
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
            except BrokenProcessPool:  # a process died between two results, and `each` stays a suspect
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
    # Never a plain fork: locks that threads hold stay locked in the child. A fork server imports PyTorch once.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), prepare_worker)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xcube.data.build", "trimesh"])
    return ProcessPoolExecutor(workers, context, prepare_worker)


def prepare_worker(threads: int = 1) -> None:
    """Prepare a worker process: set its number of threads, ignore interrupts, and end it when its parent ends."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and lets the work in flight finish
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent: a worker whose parent was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_ray(
    function: Callable[[Input], Result], inputs: Iterable[Input], workers: int
) -> Generator[tuple[Input, Result | None]]:
    """Run as Ray tasks, on the cluster that `ray.init` finds or on this machine.

    Every node must see the files under the same paths.

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
    return function(each)  # Ray takes functions only, not other callables
