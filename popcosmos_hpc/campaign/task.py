"""Fit one block: read, infer, summarise, write, commit."""

import logging
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from popcosmos_hpc.campaign.events import log_event
from popcosmos_hpc.campaign.ledger import BlockRecord, Ledger, Shard, new_token
from popcosmos_hpc.campaign.retry import classify
from popcosmos_hpc.campaign.worker import Worker, build_worker, pool_facts
from popcosmos_hpc.errors import Status
from popcosmos_hpc.partition import Block

logger = logging.getLogger(__name__)
Progress = Callable[[int], None]


def run_block(run_dir: str, block: Block, attempt: int, batch_size: int, progress: Progress | None = None):
    """`fit_block` in a process that may not have built its worker yet; failures come back as records."""
    folder, start = Path(run_dir), time.monotonic()
    try:
        worker = build_worker(folder)
    except Exception as error:
        return _failed(folder, block, attempt, "", start, error)
    return fit_block(folder, block, worker, attempt, batch_size, progress)


def fit_block(
    run_dir: Path,
    block: Block,
    worker: Worker,
    attempt: int = 1,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> BlockRecord:
    """Fit and commit one block.

    Args:
        run_dir: run directory.
        block: the block.
        worker: model and sampler.
        attempt: number of this attempt, from 1.
        batch_size: galaxies per device call; the run's own if None.
        progress: called with the number of galaxies finished in this block; what it raises ends the
            attempt without a trace.

    Returns:
        The record that stands in the ledger, or the record of a failure: an error never escapes.
    """
    ledger, token, start = Ledger(run_dir), new_token(), time.monotonic()
    try:
        standing = ledger.record(block)
        if standing is not None:
            ledger.install(block, standing)
            return standing
        data, n_flagged = infer_block(run_dir, block, worker, batch_size, progress)
        shards = _write(run_dir, block, worker, data, ledger.scratch(block, token))
        record = BlockRecord(
            key=block.key,
            state="done",
            attempt=attempt,
            fingerprint=worker.fingerprint,
            n_galaxies=block.n_galaxies,
            n_flagged=n_flagged,
            seconds=time.monotonic() - start,
            host=socket.gethostname(),
            token=token,
            shards=shards,
        )
        standing = ledger.commit(block, record)
        if standing.token != token:
            log_event(run_dir, "second_writer", block=block.key, winner=standing.token, loser=token)
        return standing
    except Exception as error:
        return _failed(run_dir, block, attempt, worker.fingerprint, start, error, token)
    finally:
        # Of a commit cut short by an error, a later attempt still finds the shards in scratch.
        if _abandoned(ledger, block, token):
            shutil.rmtree(ledger.scratch(block, token), ignore_errors=True)


def _abandoned(ledger: Ledger, block: Block, token: str) -> bool:
    """Whether no record names this attempt, so that its scratch can go."""
    try:
        record = ledger.record(block)
    except Exception:
        logger.warning("record of %s could not be read; its scratch is kept", block.key, exc_info=True)
        return False
    return record is None or record.token != token


def read_data(run_dir: Path, block: Block, worker: Worker):
    """Identifiers (galaxy,) and `Photometry` of a block; known redshifts only if the run uses them."""
    from popcosmos_hpc.survey.photometry_store import read_block

    object_id, _, _, photometry = read_block(run_dir, block, worker.model.bands)
    if not worker.config.model.use_redshift:
        unknown = np.full_like(photometry.redshift, np.nan)
        photometry = photometry._replace(redshift=unknown, redshift_err=unknown)
    return object_id, photometry


def infer_block(
    run_dir: Path,
    block: Block,
    worker: Worker,
    batch_size: int | None = None,
    progress: Progress | None = None,
):
    """Posteriors of one block, without writing anything.

    Returns:
        The `BlockPosterior`, and the number of galaxies whose status is not OK.
    """
    from popcosmos_hpc.inference.batch import fit_galaxies
    from popcosmos_hpc.inference.ladder import Ladder, climb
    from popcosmos_hpc.inference.summary import summarise
    from popcosmos_hpc.survey.posterior_store import CERTIFICATE, BlockPosterior

    config = worker.config
    object_id, photometry = read_data(run_dir, block, worker)
    fit: Callable = climb if isinstance(worker.sampler, Ladder) else fit_galaxies
    posterior = fit(
        worker.sampler,
        worker.model,
        photometry,
        object_id,
        config.seed,
        batch_size or config.sampler.batch_size,
        progress,
        config.output.draws,
    )
    summary = summarise(worker.model, posterior)
    theta = np.asarray(posterior.theta, np.float32)
    if config.output.by_reference:
        from popcosmos_hpc.inference.pool import PoolSampler

        theta = np.where((posterior.sampler == PoolSampler.identifier)[:, None, None], np.nan, theta)
    certificate = np.stack([np.asarray(getattr(posterior, name), np.float32) for name in CERTIFICATE], axis=1)
    data = BlockPosterior(
        object_id=object_id,
        theta=theta,
        log_prior=np.asarray(posterior.log_prior, np.float32),
        log_likelihood=np.asarray(posterior.log_likelihood, np.float32),
        pool_row=np.asarray(posterior.pool_row, np.int32),
        summary=summary.values,
        redshift_quantiles=summary.redshift_quantiles,
        certificate=certificate,
    )
    return data, int(np.sum(np.asarray(posterior.status) != Status.OK))


def _write(run_dir: Path, block: Block, worker: Worker, data, scratch: Path) -> tuple[Shard, ...]:
    from popcosmos_hpc.inference.summary import QUANTILES, REDSHIFT_QUANTILES
    from popcosmos_hpc.survey.posterior_store import create_partition_store, write_block

    config = worker.config
    attributes = {
        "run": config.name,
        "config_sha256": config.hash(),
        "weights_sha256": worker.weights,
        "bands": list(worker.model.bands),
        "param_unit": [parameter.unit for parameter in worker.model.space.parameters],
        "quantity_unit": list(worker.summary_units),
        "quantile": list(QUANTILES),
        "redshift_quantile": list(REDSHIFT_QUANTILES),
        **pool_facts(config),
    }
    create_partition_store(
        run_dir,
        block.partition,
        config.block.size,
        config.output.draws,
        worker.model.space.names,
        worker.summary_names,
        attributes,
    )
    space = worker.model.space
    shards = write_block(scratch, block, config.block.size, data, config.output.keep_bits, space)
    return tuple(Shard(shard.relative_path, shard.sha256, shard.nbytes) for shard in shards)


def _failed(
    run_dir: Path,
    block: Block,
    attempt: int,
    fingerprint: str,
    start: float,
    error: Exception,
    token: str = "",
) -> BlockRecord:
    """Record a failure; where even that cannot be written, the caller still gets the record."""
    record = BlockRecord(
        key=block.key,
        state="failed",
        attempt=attempt,
        fingerprint=fingerprint,
        n_galaxies=block.n_galaxies,
        seconds=time.monotonic() - start,
        host=socket.gethostname(),
        error=f"{type(error).__name__}: {error}"[:2000],
        error_class=classify(error),
        token=token or new_token(),
    )
    shown = error if logger.isEnabledFor(logging.DEBUG) else None
    logger.warning("block %s, attempt %d: %s", block.key, attempt, record.error[:300], exc_info=shown)
    try:
        Ledger(run_dir).record_failure(block, record)
    except OSError as second:
        logger.warning("the failure could not be recorded: %s", second)
    log_event(run_dir, "block_failed", block=block.key, error=record.error, error_class=record.error_class)
    return record
