"""A campaign: plan minus records, in a sliding window, until nothing is left to try."""

import heapq
import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from popcosmos_hpc.campaign import retry
from popcosmos_hpc.campaign.cluster import Attempt, Executor, Outcome, Stopped, open_executor
from popcosmos_hpc.campaign.compilation_cache import remove_damaged_entries
from popcosmos_hpc.campaign.events import log_event
from popcosmos_hpc.campaign.ledger import BlockRecord, Ledger, new_token
from popcosmos_hpc.campaign.pool_checks import check_memory
from popcosmos_hpc.campaign.prepare import check_run
from popcosmos_hpc.campaign.progress import Progress
from popcosmos_hpc.campaign.worker import read_run, worker_environment
from popcosmos_hpc.config import ExecutorConfig, RunConfig
from popcosmos_hpc.partition import Block, Partition
from popcosmos_hpc.survey.plan import Plan

logger = logging.getLogger(__name__)
_WAIT = 0.5


@dataclass(frozen=True)
class CampaignResult:
    """How a campaign ended.

    Args:
        done: finished blocks of the plan.
        failed: blocks set aside.
        left: blocks neither finished nor set aside.
        interrupted: whether the user stopped it.
    """

    done: int
    failed: int
    left: int
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some blocks failed, 3 interrupted."""
        if self.interrupted:
            return 3
        return 1 if self.failed or self.left else 0


class StopRequest:
    """Whether the user asked to stop, by Ctrl-C or SIGTERM; a second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.requested

    def receive(self, number: int, frame: object) -> None:
        """Signal handler."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("stopping on %s; once more to stop at once", signal.Signals(number).name)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over both signals, in the main thread only: elsewhere Python forbids it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.receive) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def run_campaign(
    run_dir: Path | str,
    executor: ExecutorConfig | None = None,
    retry_failed: bool = False,
    accept_code_change: bool = False,
    stop: StopRequest | None = None,
) -> CampaignResult:
    """Fit every block of a run that has no record yet.

    Args:
        run_dir: a run directory that `plan_run` made.
        executor: where to run; the run's own setting if None. Results do not depend on it.
        retry_failed: try blocks again that were set aside.
        accept_code_change: go on although source code changed.
        stop: carries the wish to stop.

    Raises:
        LedgerError: the run's settings, weights, code or input changed, or a record is damaged.
    """
    run_dir, stop = Path(run_dir), stop or StopRequest()
    with stop.listening():
        executor = executor or read_run(run_dir).executor
        if executor.name == "serial":  # before JAX starts its device
            os.environ.update(worker_environment(executor.threads_per_worker))
        remove_damaged_entries()
        config, plan = check_run(run_dir, accept_code_change)
        if executor.name in ("serial", "local"):  # they run on this machine
            check_memory(config, executor)
        campaign = Campaign(run_dir, config, plan, retry_failed)
        return campaign.run(executor, stop)


class Campaign:
    """State of one `fit`: what is pending, what waits for its pause, what is in flight.

    Args:
        run_dir: run directory.
        config: its settings.
        plan: its plan.
        retry_failed: forget failures of earlier sessions.
    """

    def __init__(self, run_dir: Path, config: RunConfig, plan: Plan, retry_failed: bool):
        self._run_dir, self._config, self._plan = run_dir, config, plan
        self._ledger = Ledger(run_dir)
        blocks = plan.blocks()
        moved = self._ledger.finish_interrupted(blocks)
        if moved:
            log_event(run_dir, "interrupted_commits_finished", blocks=moved)
        done, failures = self._ledger.facts(blocks)
        self._n_blocks, self._done = len(blocks), set(done)
        self._galaxies_done = sum(record.n_galaxies for record in done.values())
        self._failures = {} if retry_failed else {key: list(item) for key, item in failures.items()}
        self._set_aside = {key for key in self._failures if key not in done and self._is_set_aside(key)}
        self._pending = deque(
            block for block in blocks if block.key not in done and block.key not in self._set_aside
        )
        self._missing = Counter(block.partition for block in blocks if block.key not in done)
        self._waiting: list[tuple[float, str, Block]] = []
        self._in_flight: dict[str, int] = {}
        self._failed_now = 0

    def run(self, config: ExecutorConfig, stop: StopRequest) -> CampaignResult:
        """Run until nothing is left to try, the failure limit is passed, or the user stops."""
        self._fold_finished()
        progress = Progress(self._plan.n_galaxies, self._galaxies_done)
        log_event(self._run_dir, "session_started", executor=config.name, blocks=len(self._pending))
        try:
            if self._pending:
                with open_executor(config, self._run_dir, stop, progress.advance) as executor:
                    self._loop(executor, stop, progress, counts_itself=config.name == "serial")
        except Stopped:
            pass
        finally:
            progress.close()
            log_event(self._run_dir, "session_ended", done=len(self._done), interrupted=stop.requested)
        left = self._n_blocks - len(self._done) - len(self._set_aside)
        return CampaignResult(len(self._done), len(self._set_aside), left, stop.requested and left > 0)

    def _loop(self, executor: Executor, stop: StopRequest, progress: Progress, counts_itself: bool) -> None:
        while (self._pending or self._waiting or self._in_flight) and not stop():
            too_many = self._failed_now >= self._config.retry.stop_after_failed_blocks
            if too_many and not self._in_flight:
                logger.error("%d blocks failed since the start: stopping", self._failed_now)
                return
            if not too_many:
                self._refill(executor)
            for outcome in executor.collect(_WAIT):
                self._settle(outcome, progress, counts_itself)
            progress.tick()

    def _refill(self, executor: Executor) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._pending.appendleft(heapq.heappop(self._waiting)[2])
        while self._pending and len(self._in_flight) < executor.capacity:
            block = self._pending.popleft()
            failures = self._failures.get(block.key, [])
            batch_size = retry.batch_size_after(self._config.sampler.batch_size, failures)
            executor.submit(Attempt(block, len(failures) + 1, batch_size))
            self._in_flight[block.key] = 0

    def _settle(self, outcome: Outcome, progress: Progress, counts_itself: bool) -> None:
        block = outcome.attempt.block
        del self._in_flight[block.key]
        record = outcome.record or self._lost(outcome)
        if record.state == "failed":
            self._settle_failure(block, record)
            return
        self._done.add(block.key)
        if not counts_itself:
            progress.advance(block.n_galaxies)
        self._missing[block.partition] -= 1
        if self._missing[block.partition] == 0:
            self._fold(block.partition)

    def _settle_failure(self, block: Block, record: BlockRecord) -> None:
        failures = self._failures.setdefault(block.key, [])
        failures.append(record)
        if self._is_set_aside(block.key):
            self._set_aside.add(block.key)
            self._failed_now += 1
            log_event(self._run_dir, "block_set_aside", block=block.key, error=record.error)
            logger.error("block %s is set aside after %d failed attempts", block.key, len(failures))
            return
        pause = retry.pause_after(self._config.retry.backoff, failures)
        heapq.heappush(self._waiting, (time.monotonic() + pause, block.key, block))

    def _lost(self, outcome: Outcome) -> BlockRecord:
        """The fact that a worker was lost with this block; the coordinator writes it, for nobody else can."""
        attempt = outcome.attempt
        record = BlockRecord(
            key=attempt.block.key,
            state="failed",
            attempt=attempt.number,
            fingerprint="",
            n_galaxies=attempt.block.n_galaxies,
            error=f"worker lost: {outcome.lost}"[:2000],
            error_class=retry.ErrorClass.INFRASTRUCTURE,
            token=new_token(),
        )
        log_event(self._run_dir, "worker_lost", block=record.key, error=record.error)
        try:
            self._ledger.record_failure(attempt.block, record)
        except OSError as error:
            logger.warning("the loss of a worker could not be recorded: %s", error)
        return record

    def _is_set_aside(self, key: str) -> bool:
        return retry.is_quarantined(self._failures[key], self._config.retry.attempts)

    def _fold_finished(self) -> None:
        for partition in self._plan.partitions:
            if self._missing[partition] == 0:
                self._fold(partition)

    def _fold(self, partition: Partition) -> None:
        try:
            self._ledger.fold(partition, self._plan.block_size)
        except OSError as error:  # single records hold the same facts
            logger.warning("records of %s stay unfolded: %s", partition.key, error)


def with_overrides(config: RunConfig, name: str | None, workers: int | None) -> ExecutorConfig:
    """The run's executor with a user's changes.

    Args:
        config: the run's settings.
        name: `serial` or `local`, or None to keep.
        workers: number of processes, or None to keep; more than one implies `local`.
    """
    executor = config.executor
    name = name or ("local" if workers and workers > 1 else executor.name)
    if name == "serial":
        return _changed(executor, name=name, workers=workers or 1)
    return _changed(executor, name=name, workers=workers or executor.workers)


def _changed(executor: ExecutorConfig, **changes: object) -> ExecutorConfig:
    """Settings with changes, checked again."""
    return ExecutorConfig.model_validate({**executor.model_dump(mode="json"), **changes})
