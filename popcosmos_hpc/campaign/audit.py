"""A random fraction of a run's galaxies, fitted again by samplers that share nothing with the run's own.

Which galaxies follows from the run's seed and their identifiers alone. Results lie beside the run, one table
per block and sampler, and never change it; what is there already is not fitted again.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from popcosmos_hpc.campaign.ledger import Ledger
from popcosmos_hpc.campaign.task import read_data
from popcosmos_hpc.campaign.worker import PLAN_FILE, Worker, build_worker
from popcosmos_hpc.config import RunConfig
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.partition import Block
from popcosmos_hpc.photometry import Photometry
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import CERTIFICATE, read_posterior

logger = logging.getLogger(__name__)
FOLDER = "audit"
EXHAUSTIVE = "exhaustive"
_STREAM = 0x61756469
_BATCH = 4


def chosen(seed: int, object_id: np.ndarray, fraction: float) -> np.ndarray:
    """Which galaxies are audited, (galaxy,) bool.

    Args:
        seed: of the run.
        object_id: (galaxy,) int64.
        fraction: of all galaxies.
    """
    from popcosmos_hpc.inference.batch import galaxy_keys

    return galaxy_keys(seed ^ _STREAM, object_id)[:, 0] < fraction * 2.0**32


def check_audit(config: RunConfig) -> None:
    """Refuse auditors that do not exist or have wrong settings, before anything is queued.

    Raises:
        ConfigurationError: there is no such sampler or setting; or no pool for `exhaustive`.
    """
    from popcosmos_hpc.inference.exhaustive import ExhaustivePool
    from popcosmos_hpc.inference.sampler import build_sampler, checked_settings

    for name, settings in config.audit.samplers.items():
        if name != EXHAUSTIVE:
            build_sampler(name, **settings)
            continue
        checked_settings(ExhaustivePool, name, settings)
        if config.sampler.name != "ladder":
            raise ConfigurationError(
                "sampler.name ladder for an exhaustive audit: it weighs the run's pool",
                config.sampler.name,
                "audit.samplers",
                "Leave exhaustive out.",
            )


def make_auditor(worker: Worker, name: str, settings: dict[str, Any]) -> Any:
    """A sampler that audits a run; arguments and errors as for `check_audit`."""
    from popcosmos_hpc.inference.exhaustive import ExhaustivePool
    from popcosmos_hpc.inference.ladder import Ladder
    from popcosmos_hpc.inference.sampler import build_sampler, checked_settings

    if name != EXHAUSTIVE:
        return build_sampler(name, **settings)
    if not isinstance(worker.sampler, Ladder):
        raise ConfigurationError(
            "a run on the ladder", worker.config.sampler.name, "audit", "Leave exhaustive out."
        )
    pool = worker.sampler.rungs[0].sampler.pool  # pyright: ignore[reportAttributeAccessIssue]
    return ExhaustivePool(pool, **checked_settings(ExhaustivePool, name, settings))


def run_audit(
    run_dir: Path | str,
    fraction: float | None = None,
    samplers: tuple[str, ...] = (),
    progress: Callable[[str], None] | None = None,
) -> int:
    """Fit a random fraction of the finished galaxies again, and store how far the answers lie apart.

    Args:
        run_dir: a run of which at least one block is done.
        fraction: of its galaxies; the run's own setting if None.
        samplers: names; those of the run's settings if empty.
        progress: called with a line of text after every block.

    Returns:
        Fits made now.

    Raises:
        LedgerError: there is no run, or what it was made with has changed.
        ConfigurationError: there is no such sampler.
    """
    run_dir = Path(run_dir)
    plan, worker = Plan.read(run_dir / PLAN_FILE), build_worker(run_dir)
    settings = worker.config.audit
    fraction = settings.fraction if fraction is None else fraction
    done = Ledger(run_dir).done(plan.blocks())
    n_fits = 0
    for name in samplers or tuple(settings.samplers):
        sampler = make_auditor(worker, name, settings.samplers.get(name, {}))
        for block in (block for block in plan.blocks() if block.key in done):
            path = run_dir / FOLDER / name / f"{block.key.replace('/', '_')}.parquet"
            if path.exists():
                continue
            table = _audit_block(run_dir, block, worker, sampler, fraction)
            with replace_atomically(path) as scratch:
                pq.write_table(table, scratch)
            n_fits += table.num_rows
            if progress is not None and table.num_rows:
                progress(f"audit by {name}: {n_fits} galaxies fitted again")
    return n_fits


def _audit_block(run_dir: Path, block: Block, worker: Worker, sampler: Any, fraction: float) -> pa.Table:
    """Comparisons of the chosen galaxies of one block."""
    from popcosmos_hpc.inference.batch import fit_galaxies

    object_id, photometry = read_data(run_dir, block, worker)
    rows = np.flatnonzero(chosen(worker.config.seed, object_id, fraction))
    columns = ["theta", "certificate"]
    own = read_posterior(run_dir, block.partition, columns, block.start, block.stop)
    start, draws = time.monotonic(), min(worker.config.output.draws, sampler.max_draws)
    part = Photometry(*(np.asarray(values)[rows] for values in photometry))
    seed = worker.config.seed ^ _STREAM
    fitted = fit_galaxies(sampler, worker.model, part, object_id[rows], seed, _BATCH, None, draws)
    seconds = (time.monotonic() - start) / max(len(rows), 1)
    names = worker.model.space.names
    table = _compare(object_id[rows], fitted, own["theta"][rows], own["certificate"][rows], seconds)
    return table.replace_schema_metadata({"param": ",".join(names)})


def _compare(object_id: np.ndarray, fitted: Any, theta: np.ndarray, certificate: np.ndarray, seconds: float):
    """How far two posteriors of each galaxy lie apart.

    Args:
        object_id: (galaxy,).
        fitted: posterior of the auditor.
        theta: (galaxy, draw, param) of the run.
        certificate: (galaxy, entry) of the run.
        seconds: per galaxy, of the auditor.

    Returns:
        One row per galaxy. `shift` (param): difference of means, auditor minus run, in standard deviations of
        the auditor; `shift_error`: its expected size from both effective sizes; `width_ratio` (param): of
        standard deviations, run over auditor.
    """
    entry = lambda name: certificate[:, CERTIFICATE.index(name)].astype(np.float64)  # noqa: E731
    of_run, theirs = theta.astype(np.float64), np.asarray(fitted.theta, np.float64)
    sd = theirs.std(1)
    sizes = [
        np.minimum(np.asarray(ess, np.float64), draws)
        for ess, draws in ((entry("ess"), of_run.shape[1]), (fitted.ess, theirs.shape[1]))
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = (theirs.mean(1) - of_run.mean(1)) / sd
        ratio = of_run.std(1) / sd
        error = np.sqrt(1.0 / sizes[0] + 1.0 / sizes[1])
    return pa.table(
        {
            "object_id": pa.array(object_id, pa.int64()),
            "run_sampler": entry("sampler").astype(np.int16),
            "run_status": entry("status").astype(np.int16),
            "status": np.asarray(fitted.status, np.int16),
            "run_ess": entry("ess"),
            "ess": np.asarray(fitted.ess, np.float64),
            "rhat": np.asarray(fitted.rhat, np.float64),
            "log_evidence_difference": np.asarray(fitted.log_evidence, np.float64) - entry("log_evidence"),
            "shift_error": error,
            "shift": pa.array(list(shift), pa.list_(pa.float64())),
            "width_ratio": pa.array(list(ratio), pa.list_(pa.float64())),
            "seconds": np.full(len(object_id), seconds),
        }
    )


def read_audit(run_dir: Path | str) -> dict[str, pa.Table]:
    """Comparisons by name of the auditor; only those that compared any galaxy."""
    found = {}
    for folder in sorted((Path(run_dir) / FOLDER).glob("*")):
        tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
        if tables and sum(table.num_rows for table in tables):
            found[folder.name] = pa.concat_tables(tables)
    return found
