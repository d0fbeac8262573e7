"""Whether a pool suits a survey and a machine, asked before anything is fitted."""

from pathlib import Path

import numpy as np
import psutil

from popcosmos_hpc.campaign.ladder import ladder_settings
from popcosmos_hpc.config import ExecutorConfig, RunConfig
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.photometry import AB_ZERO_POINT, BandState
from popcosmos_hpc.survey.photometry_store import band_indices, open_photometry
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.pool_store import open_pool

_MARGIN = 1.0  # mag between galaxies and the limit of their pool
_MAX_FAINT = 0.01
_USABLE = 0.9  # of the free memory


def check_depth(run_dir: Path, config: RunConfig, plan: Plan) -> None:
    """Refuse a pool that leaves out draws as bright as the survey's galaxies.

    Args:
        run_dir: holds the photometry of the plan.
        config: of the run.
        plan: its partitions.

    Raises:
        ConfigurationError: more than one galaxy in a hundred lies within a magnitude of the limit, or below.
    """
    if config.sampler.name != "ladder":
        return
    limit = open_pool(ladder_settings(config).pool).manifest["limit"]
    if limit is None:
        return
    faintest = limit["magnitude"] - _MARGIN
    flux = 10 ** (0.4 * (AB_ZERO_POINT - faintest))
    n_faint = n_seen = 0
    for partition in plan.partitions:
        group = open_photometry(run_dir, partition)
        index = band_indices(group, [limit["band"]], partition.key)[0]
        seen = np.asarray(group["state"][:, index]) == BandState.OBSERVED  # pyright: ignore
        n_seen += int(seen.sum())
        n_faint += int(np.sum(np.asarray(group["flux"][:, index])[seen] < flux))  # pyright: ignore
    if n_faint > _MAX_FAINT * n_seen:
        raise ConfigurationError(
            f"a pool whose limit is at least {_MARGIN:g} mag fainter than the survey's galaxies",
            f"{limit['band']} < {limit['magnitude']:g}, and {100 * n_faint / n_seen:.1f} % of them fainter "
            f"than {faintest:g}",
            "sampler.pool",
            "Build a pool with a fainter limit, or without.",
        )


def check_memory(config: RunConfig, executor: ExecutorConfig, available: int | None = None) -> None:
    """Refuse a pool that the workers on this machine cannot hold: each keeps one in memory.

    Args:
        config: of the run.
        executor: where it is about to run.
        available: free memory [bytes]; asked of the system if None.

    Raises:
        ConfigurationError: the workers would need more than is free, or more than their own limit.
    """
    if config.sampler.name != "ladder":
        return
    need = open_pool(ladder_settings(config).pool).nbytes
    cure = "Build a pool with fewer draws, use fewer workers, or give them more memory."
    if executor.memory is not None and need > 1e9 * executor.memory:
        raise ConfigurationError(
            f"a pool that fits in the {executor.memory:g} GB of a worker",
            _gigabytes(need),
            "sampler.pool",
            cure,
        )
    free = psutil.virtual_memory().available if available is None else available
    if need * executor.workers > _USABLE * free:
        raise ConfigurationError(
            f"a pool that fits {executor.workers} times in the {_gigabytes(free)} of memory that are free",
            _gigabytes(need),
            "sampler.pool",
            cure,
        )


def _gigabytes(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB"
