"""How a run stands, from its plan, ledger and events alone: works while it runs, and over ssh."""

import time
from dataclasses import dataclass
from pathlib import Path

from popcosmos_hpc.campaign import retry
from popcosmos_hpc.campaign.events import read_events
from popcosmos_hpc.campaign.ledger import BlockRecord, Ledger
from popcosmos_hpc.campaign.progress import format_duration
from popcosmos_hpc.campaign.worker import PLAN_FILE, read_run
from popcosmos_hpc.survey.plan import Plan


@dataclass(frozen=True)
class CampaignStatus:
    """Facts about a run.

    Args:
        name: the run's name.
        n_blocks: blocks of the plan.
        done: finished blocks.
        failed: blocks set aside.
        left: the others.
        n_galaxies: galaxies of the plan.
        galaxies_done: galaxies in finished blocks.
        n_flagged: of those, galaxies whose status is not OK.
        galaxies_per_second: over all sessions that finished a block; NaN before the first block.
        seconds_left: at that rate; NaN if unknown.
        seconds_worked: wall time of all sessions up to their last block.
        failed_attempts: attempts that failed, lost workers apart.
        lost_workers: attempts that ended with their worker.
        last_block: seconds since the epoch of the last finished block; NaN before the first.
        errors: one message per block set aside, by key.
    """

    name: str
    n_blocks: int
    done: int
    failed: int
    left: int
    n_galaxies: int
    galaxies_done: int
    n_flagged: int
    galaxies_per_second: float
    seconds_left: float
    seconds_worked: float
    failed_attempts: int
    lost_workers: int
    last_block: float
    errors: dict[str, str]

    def text(self) -> str:
        """A few lines for a terminal."""
        share = 100 * self.galaxies_done / self.n_galaxies if self.n_galaxies else 100.0
        lines = [
            f"run        {self.name}",
            f"blocks     {self.done} done, {self.failed} failed, {self.left} left, of {self.n_blocks}",
            f"galaxies   {self.galaxies_done} of {self.n_galaxies} ({share:.1f} %), {self.n_flagged} flagged",
            f"speed      {self._speed()}",
        ]
        if self.failed_attempts or self.lost_workers:
            lines.append(
                f"attempts   {self.failed_attempts} failed, {self.lost_workers} lost with their worker"
            )
        if self.last_block == self.last_block:
            ago = format_duration(max(0.0, time.time() - self.last_block))
            lines.append(f"last block {ago} ago")
        lines += [f"failed     {key}: {error}" for key, error in sorted(self.errors.items())[:10]]
        if len(self.errors) > 10:
            lines.append(f"           and {len(self.errors) - 10} more")
        if self.failed:
            lines.append("Correct the cause, then `popcosmos-hpc fit RUN --retry-failed`.")
        return "\n".join(lines)

    def _speed(self) -> str:
        if self.galaxies_per_second != self.galaxies_per_second:
            return "unknown until a first block is done"
        spent = (
            f"{self.galaxies_per_second:.3g} galaxies per second over {format_duration(self.seconds_worked)}"
        )
        return spent if not self.left else f"{spent}, about {format_duration(self.seconds_left)} left"


def campaign_status(run_dir: Path | str) -> CampaignStatus:
    """Facts about a run.

    Raises:
        LedgerError: the folder holds no run, or a record is damaged.
    """
    run_dir = Path(run_dir)
    config, plan = read_run(run_dir), Plan.read(run_dir / PLAN_FILE)
    blocks = plan.blocks()
    done, failures = Ledger(run_dir).facts(blocks)
    open_failures = {key: items for key, items in failures.items() if key not in done}
    set_aside = {
        key: items[-1].error
        for key, items in open_failures.items()
        if retry.is_quarantined(items, config.retry.attempts)
    }
    attempts = [record for items in failures.values() for record in items]
    lost = sum(record.error_class == retry.ErrorClass.INFRASTRUCTURE for record in attempts)
    galaxies_done = sum(record.n_galaxies for record in done.values())
    worked, rate = _throughput(run_dir, done)
    left = plan.n_galaxies - galaxies_done
    return CampaignStatus(
        name=config.name,
        n_blocks=len(blocks),
        done=len(done),
        failed=len(set_aside),
        left=len(blocks) - len(done) - len(set_aside),
        n_galaxies=plan.n_galaxies,
        galaxies_done=galaxies_done,
        n_flagged=sum(record.n_flagged for record in done.values()),
        galaxies_per_second=rate,
        seconds_left=left / rate if rate > 0 else float("nan"),
        seconds_worked=worked,
        failed_attempts=len(attempts) - lost,
        lost_workers=lost,
        last_block=max((record.time for record in done.values()), default=float("nan")),
        errors=set_aside,
    )


def _throughput(run_dir: Path, done: dict[str, BlockRecord]) -> tuple[float, float]:
    """Wall seconds of all sessions up to their last block, and galaxies per second over them."""
    starts = sorted(
        event["time"] for event in read_events(run_dir) if event.get("event") == "session_started"
    )
    records = sorted(done.values(), key=lambda record: record.time)
    worked = 0.0
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else float("inf")
        finished = [record.time for record in records if start <= record.time < end]
        worked += finished[-1] - start if finished else 0.0
    if not starts:  # events may have been deleted: fall back on what the records say of themselves
        worked = sum(record.seconds for record in records)
    galaxies = sum(record.n_galaxies for record in records)
    return worked, galaxies / worked if worked > 0 else float("nan")
