"""Where blocks run: in this process, or on Dask workers. Nothing else in the package knows which."""

import contextlib
import logging
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from popcosmos_hpc.campaign.ledger import BlockRecord
from popcosmos_hpc.campaign.task import run_block
from popcosmos_hpc.campaign.worker import worker_environment
from popcosmos_hpc.config import ExecutorConfig
from popcosmos_hpc.partition import Block

logger = logging.getLogger(__name__)
_JOBS_PER_WORKER = 3


@dataclass(frozen=True)
class Attempt:
    """One attempt at a block: its number from 1, and its batch size."""

    block: Block
    number: int
    batch_size: int


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt: a record, or none where the worker was lost, and then why."""

    attempt: Attempt
    record: BlockRecord | None
    lost: str = ""


class Stopped(BaseException):
    """The user asked to stop: like KeyboardInterrupt it passes handlers of ordinary errors."""


class Executor(ABC):
    """Takes attempts and hands back outcomes, in any order.

    Attributes:
        capacity: attempts in flight.
    """

    capacity: int

    @abstractmethod
    def submit(self, attempt: Attempt) -> None:
        """Start or queue an attempt."""

    @abstractmethod
    def collect(self, timeout: float) -> list[Outcome]:
        """Outcomes that have arrived, after waiting for at most `timeout` seconds for a first."""


class SerialExecutor(Executor):
    """Runs blocks in this process: the specification of the others.

    Args:
        run_dir: run directory.
        stopping: asked after every galaxy; a true answer abandons the block at hand.
        progress: told of every finished galaxy.
    """

    capacity = 1

    def __init__(self, run_dir: Path, stopping: Callable[[], bool], progress: Callable[[int], None]):
        self._run_dir, self._stopping, self._progress = run_dir, stopping, progress
        self._queue: list[Attempt] = []
        self._counted = 0

    def submit(self, attempt: Attempt) -> None:
        """Queue an attempt."""
        self._queue.append(attempt)

    def collect(self, timeout: float) -> list[Outcome]:
        """Run the oldest attempt; without one, wait."""
        if not self._queue:
            time.sleep(timeout)
            return []
        attempt, self._counted = self._queue.pop(0), 0
        record = run_block(
            str(self._run_dir), attempt.block, attempt.number, attempt.batch_size, self._on_galaxies
        )
        # A failed attempt counts for nothing, a block found finished for all of its galaxies.
        true_count = record.n_galaxies if record.state == "done" else 0
        self._progress(true_count - self._counted)
        return [Outcome(attempt, record)]

    def _on_galaxies(self, count: int) -> None:
        self._counted += count
        self._progress(count)
        if self._stopping():
            raise Stopped


class DaskExecutor(Executor):
    """Runs blocks on Dask workers, a sliding window of futures at a time.

    Args:
        client: a `distributed.Client`.
        run_dir: run directory, on a file system that all workers see.
        window: futures per worker.
        workers: number of workers.
    """

    def __init__(self, client: Any, run_dir: Path, window: int, workers: int):
        from distributed import as_completed

        self._client, self._run_dir = client, run_dir
        self.capacity = window * workers
        self._attempts: dict[str, Attempt] = {}
        self._finished = as_completed()

    def submit(self, attempt: Attempt) -> None:
        """Send an attempt to the scheduler."""
        # Impure: a second attempt at a block is another task, not the memory of the first.
        future = self._client.submit(
            run_block, str(self._run_dir), attempt.block, attempt.number, attempt.batch_size, pure=False
        )
        self._attempts[future.key] = attempt
        self._finished.add(future)

    def collect(self, timeout: float) -> list[Outcome]:
        """Outcomes that have arrived; their futures are released at once."""
        deadline = time.monotonic() + timeout
        while True:
            batch = self._finished.next_batch(block=False)
            if batch or time.monotonic() > deadline:
                return [self._outcome(future) for future in batch]
            time.sleep(0.02)

    def _outcome(self, future: Any) -> Outcome:
        attempt = self._attempts.pop(future.key)
        try:
            if future.status == "finished":
                return Outcome(attempt, future.result())
            # `run_block` turns every error of its own into a record: this one is Dask's.
            reason = str(future.exception()) if future.status == "error" else future.status
            return Outcome(attempt, None, reason)
        finally:
            future.release()


@contextlib.contextmanager
def open_client(config: ExecutorConfig) -> Iterator[Any]:
    """A Dask client on a cluster of this machine, or None for the serial executor.

    Args:
        config: executor settings.
    """
    if config.name == "serial":
        yield None
        return
    import dask.config as dask_config
    from distributed import Client, LocalCluster

    environment = worker_environment(config.threads_per_worker)
    settings = {
        # A lost worker is met by our own retries, which know the ledger.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": True,
        "distributed.scheduler.worker-saturation": 1.1,
        "distributed.nanny.pre-spawn-environ": environment,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask_config.set(settings))
        with _interrupts_blocked():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=config.workers,
                    threads_per_worker=1,  # one block at a time: arithmetic has its own threads
                    processes=True,
                    # Without a dashboard too it serves HTTP, and complains if another one has its port.
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    memory_limit=f"{config.memory}GB" if config.memory else 0,
                    silence_logs=logging.ERROR,
                )
            )
            client = stack.enter_context(Client(cluster))
        yield client


@contextlib.contextmanager
def open_executor(
    config: ExecutorConfig,
    run_dir: Path,
    stopping: Callable[[], bool],
    progress: Callable[[int], None],
) -> Iterator[Executor]:
    """The executor that the settings name, ready to take attempts.

    Args:
        config: executor settings.
        run_dir: run directory.
        stopping: asked between galaxies by executors that can abandon a block.
        progress: told of finished galaxies by executors that can tell.
    """
    if config.name == "serial":
        yield SerialExecutor(run_dir, stopping, progress)
        return
    with open_client(config) as client:
        yield DaskExecutor(client, run_dir, config.window, config.workers)


def map_jobs(client: Any, function: Callable, jobs: Iterable[tuple]) -> Iterator[Any]:
    """Results of jobs as they come, with a few jobs per worker under way."""
    if client is None:
        yield from (function(*job) for job in jobs)
        return
    from distributed import as_completed

    waiting, running = iter(jobs), as_completed()
    for _ in range(_JOBS_PER_WORKER * max(len(client.nthreads()), 1)):
        _submit_next(client, function, waiting, running)
    for future in running:
        yield future.result()
        future.release()
        _submit_next(client, function, waiting, running)


def _submit_next(client: Any, function: Callable, waiting: Iterator[tuple], running: Any) -> None:
    if (job := next(waiting, None)) is not None:
        running.add(client.submit(function, *job, pure=False))


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT for threads and processes started meanwhile, and for all that those start later.

    A terminal sends Ctrl-C to every process; it is for the coordinator, whose main thread is unblocked after.
    """
    # Starting its tracker later would unblock the signal in the thread that starts workers.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
