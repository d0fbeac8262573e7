"""A pool of the toy world on disk, built once per process by the product's own verb."""

import functools
import tempfile
from pathlib import Path

from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.campaign.pool_config import PoolConfig
from popcosmos_hpc.survey.pool_store import PoolStore
from tests import toy_run

N_DRAWS, N_TILES = 1_000_000, 8192


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="toy_pool_")


def settings(**changes) -> PoolConfig:
    given = {
        "name": "toy",
        "seed": 3,
        "model": {"bundle": str(toy_run.bundle()), "prior": "gaussian"},
        "n_draws": N_DRAWS,
        "n_tiles": N_TILES,
        "default_depth": 21.0,
    }
    return PoolConfig.model_validate({**given, **changes})


@functools.cache
def store() -> PoolStore:
    return build_survey_pool(settings(), Path(_folder().name) / "pool")
