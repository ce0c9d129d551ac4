"""Processes that train parts of a cascade, one part at a time each, and tell how far they are."""

import multiprocessing
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from xcube.training.jobs import TRAINERS, Part
from xcube.training.status import LISTENER, Status


@dataclass(frozen=True)
class Job:
    """A part to train in a folder.

    data: Folder of the data set.
    out: Folder of all parts.
    restart: Whether to begin anew.
    """

    part: Part
    data: Path
    out: Path
    restart: bool = False


@dataclass(frozen=True)
class Done:
    """A part is trained."""

    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Failed:
    """A part cannot be trained."""

    error: Exception


Message = Status | Done | Failed


class Worker:
    """A process that waits for parts to train. It ends with the process that has made it.

    Args:
        threads: Of its CPU work.
    """

    def __init__(self, threads: int) -> None:
        # A fresh interpreter: what a fork would take along, locks and threads of PyTorch, works in no child.
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        # No daemon, as those may not start processes that load data. It sees to its end itself, in prepare_worker.
        self.process = context.Process(target=_work, args=(theirs, threads))
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        """Give it something to do."""
        self.job = job
        try:
            self.line.send(job)
        except ConnectionError as error:
            raise self._dead() from error

    def message(self) -> Message:
        """What it has to say.

        Raises:
            ChildProcessError: If it is dead.
        """
        try:
            message: Message = self.line.recv()
        except (ConnectionError, EOFError) as error:
            raise self._dead() from error
        if not isinstance(message, Status):
            self.job = None
        return message

    def _dead(self) -> ChildProcessError:
        self.process.join()
        assert self.job is not None
        return ChildProcessError(
            f"{self.job.part.name}: its process has ended with {self.process.exitcode}, perhaps for want of memory; "
            "the same call goes on"
        )

    def end(self) -> None:
        """End it, whatever it does; a run goes on from its last checkpoint."""
        self.process.terminate()
        self.process.join()
        self.line.close()


@contextmanager
def workers(count: int, threads: int) -> Iterator[list[Worker]]:
    """So many processes, which end with the block."""
    made = [Worker(threads) for _ in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            worker.end()


def messages(among: Sequence[Worker]) -> Iterator[tuple[int, str, Message]]:
    """What those at work say, as soon as one of them does: its number, its part, and what it is."""
    busy = {worker.line: (number, worker) for number, worker in enumerate(among) if worker.job is not None}
    for line in wait(list(busy)):
        number, worker = busy[line]  # type: ignore[index]  # wait returns what it was given
        assert worker.job is not None
        name = worker.job.part.name
        yield number, name, worker.message()


def _work(line: "Connection[Message, Job]", threads: int) -> None:
    from xcube.data.engines import prepare_worker

    prepare_worker(threads)
    LISTENER.set(line.send)
    with suppress(KeyboardInterrupt):  # what a run makes of the end that its parent gives it
        while True:
            job = line.recv()
            try:
                line.send(Done(_train(job)))
            except Exception as error:  # noqa: BLE001  (whatever it is, somebody waits for the answer)
                line.send(Failed(_plain(error)))


def _plain(error: Exception) -> Exception:
    """The same, so that it can be sent: not every error can. Of what nobody foresaw the traceback is printed here."""
    for kind in (ValueError, FileNotFoundError, OSError, ImportError):
        if isinstance(error, kind):
            return kind(str(error))
    traceback.print_exc()
    return ChildProcessError(f"{type(error).__name__}: {error}")


def _train(job: Job) -> dict[str, float]:
    """Train a part, and return its metrics."""
    import json

    from xcube.training.run_folder import METRICS

    part, folder = job.part, job.out / job.part.name
    told: dict[str, Any] = {"level": part.level, "train": part.train, "restart": job.restart, "quiet": True}
    if part.needs is not None:
        told["vae"] = job.out / part.needs
    TRAINERS[part.kind](job.data, folder, **told, **part.options)
    metrics: dict[str, float] = json.loads((folder / METRICS).read_text())
    return metrics
