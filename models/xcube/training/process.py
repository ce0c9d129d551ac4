"""A process that trains one network of a cascade."""

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from xcube.data.engines import prepare_worker

NetworkMetrics = dict[str, float]

# A forked process would inherit the locks and threads of PyTorch, which do not work in it.
CONTEXT = multiprocessing.get_context("spawn")
TERMINAL = CONTEXT.RLock()  # held by the process that writes to the terminal
EXPECTED_ERRORS = (ValueError, FileNotFoundError, OSError, ImportError)  # subclasses first
PATIENCE = 10.0  # seconds that an idle process has to end by itself


class TrainingProcess:
    """A process that trains networks one after the other and, unlike those of `concurrent.futures`, can be stopped.

    name: Name of the network that it trains, None while it is idle.

    Args:
        threads: Number of CPU threads.
        line: Line of the terminal, counted from the cursor, on which the process shows its progress.
    """

    def __init__(self, threads: int, line: int) -> None:
        self.name: str | None = None
        self.connection, other = CONTEXT.Pipe()
        # Not a daemon, since daemons cannot start processes that load data; `prepare_worker` ends it with its parent.
        self.process = CONTEXT.Process(target=_work, args=(other, threads, line, TERMINAL))
        self.process.start()
        other.close()

    def start(self, name: str, train: Callable[[], NetworkMetrics]) -> None:
        """Start to train a network with a picklable function that returns its metrics."""
        self.name = name
        with suppress(ConnectionError):  # the process has died, which `result` reports
            self.connection.send(train)

    def result(self) -> NetworkMetrics:
        """Wait until the network is trained and return its metrics.

        Raises:
            ChildProcessError: If the process died.
            RuntimeError: If training failed with an unexpected error, which is the cause; those in `EXPECTED_ERRORS`
                keep their type. All messages begin with the name of the network.
        """
        name, self.name = self.name, None
        try:
            result: NetworkMetrics | Exception = self.connection.recv()
        except (ConnectionError, EOFError) as error:
            self.process.join()
            code = self.process.exitcode
            raise ChildProcessError(
                f"{name}: the process ended with exit code {code}, perhaps out of memory; the same command resumes"
            ) from error
        if isinstance(result, Exception):
            kind = next((kind for kind in EXPECTED_ERRORS if isinstance(result, kind)), RuntimeError)
            raise kind(f"{name}: {result}") from result
        return result


def stop(processes: Sequence[TrainingProcess]) -> None:
    """End processes. Those that train are terminated, and their runs resume from the last checkpoint."""
    for each in processes:
        if each.name is None:
            each.connection.close()  # an idle process then ends by itself, and releases its semaphores
        else:
            each.process.terminate()
    for each in processes:
        each.process.join(PATIENCE)
        each.process.terminate()
        each.process.join()


def print_line(text: str) -> None:
    """Print a line above the progress bars of the processes."""
    with TERMINAL:
        if sys.stderr.isatty():  # the cursor is on the first bar, which is drawn again below the text
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _work(connection: Connection, threads: int, line: int, terminal: Any) -> None:
    """Train networks as they come and send the metrics or the error of each."""
    from xcube.training.callbacks import Progress  # imports Lightning, which is slow

    prepare_worker(threads)
    tqdm.set_lock(terminal)
    Progress.line = line
    with suppress(EOFError, KeyboardInterrupt):  # the end of the connection, and what Lightning raises at termination
        while True:
            train: Callable[[], NetworkMetrics] = connection.recv()
            try:
                connection.send(train())
            except Exception as error:  # noqa: BLE001  (the parent waits for an answer)
                error.add_note(traceback.format_exc())  # the traceback itself cannot be sent
                connection.send(error)
