"""Part of a pool: draws of the prior with their photometry, by number."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from popcosmos_hpc.campaign.pool_config import PoolConfig
from popcosmos_hpc.campaign.worker import prior_hash, set_up_device
from popcosmos_hpc.config import ModelConfig
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.survey.files import replace_atomically

BATCH = 8192
"""Draws in one device call. Other shapes may round differently, so there is only this one."""
_PILOT_DRAWS = 2 * BATCH
_MARGIN = 0.25  # of the pilot's range, beyond it, for parameters without bounds


class PoolModel(NamedTuple):
    """What a process needs to draw: prior, emulator, bands, and the range of the parameters' codes."""

    prior: Any
    emulator: Any
    bands: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray


@lru_cache(maxsize=2)
def build_pool_model(settings: str) -> PoolModel:
    """Model of a pool, built once per process.

    Args:
        settings: a `PoolConfig` as JSON.

    Raises:
        BundleError: a bundle is missing or damaged, or lacks a band.
        ConfigurationError: the limit names a band that the pool lacks.
    """
    set_up_device()
    from popcosmos_hpc.inference.pool_draws import draw_batch
    from popcosmos_hpc.model.bundle import load_bundle

    config = PoolConfig.model_validate_json(settings)
    bundle = load_bundle(config.model.bundle)
    bands = config.model.bands or bundle.bands
    emulator, prior = bundle.emulator(bands), bundle.prior(config.model.prior)
    if config.limit is not None and config.limit.band not in bands:
        raise ConfigurationError(
            f"one of the bands {', '.join(bands)}", repr(config.limit.band), "limit.band", "Correct it."
        )
    space = prior.space
    low = np.array([parameter.lower for parameter in space.parameters])
    high = np.array([parameter.upper for parameter in space.parameters])
    pilot = np.concatenate(
        [draw_batch(prior, config.seed, start, BATCH) for start in range(0, _PILOT_DRAWS, BATCH)]
    )
    margin = _MARGIN * np.ptp(pilot, axis=0)
    low = np.where(np.isfinite(low), low, np.floor(pilot.min(0) - margin))
    high = np.where(np.isfinite(high), high, np.ceil(pilot.max(0) + margin))
    return PoolModel(prior, emulator, tuple(bands), low, high)


def pool_identity(settings: str) -> dict[str, Any]:
    """What the draws depend on: hashes of bundle and prior, bands, parameters and their range."""
    from popcosmos_hpc.model.bundle import load_bundle

    config, model = PoolConfig.model_validate_json(settings), build_pool_model(settings)
    return {
        "bands": list(model.bands),
        "param": list(model.prior.space.names),
        "theta_low": model.low.tolist(),
        "theta_high": model.high.tolist(),
        "identity": {
            "bundle": load_bundle(config.model.bundle).sha256,
            "prior": prior_hash(ModelConfig(bundle=config.model.bundle, prior=config.model.prior))
            or config.model.prior,
        },
    }


def draw_shard(settings: str, folder: str, start: int, stop: int) -> int:
    """Write the draws numbered `start` to `stop` - 1, unless they are there; returns how many were kept.

    Args:
        settings: a `PoolConfig` as JSON.
        folder: where the file goes.
        start: first draw.
        stop: one past the last.
    """
    file = draws_file(folder, start)
    if not file.is_file():
        pieces = list(_pieces(settings, start, stop))
        arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        with replace_atomically(file) as partial, open(partial, "wb") as stream:
            np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
    with np.load(file) as stored:
        return len(stored["draw"])


def draws_file(folder: str | Path, start: int) -> Path:
    """File of the draws from `start` on, before they are sorted."""
    return Path(folder) / f"draws-{start:010d}.npz"


def _pieces(settings: str, start: int, stop: int):
    from popcosmos_hpc.inference.pool_draws import photometry_batch
    from popcosmos_hpc.survey.pool_store import decode, encode

    config, model = PoolConfig.model_validate_json(settings), build_pool_model(settings)
    redshift = model.prior.space.names.index("redshift") if "redshift" in model.prior.space.names else None
    faintest = -np.inf
    if config.limit is not None:
        faintest = 10 ** (0.4 * (AB_ZERO_POINT - config.limit.magnitude))
    band = model.bands.index(config.limit.band) if config.limit is not None else 0
    for first in range(start, stop, BATCH):
        code, flux = photometry_batch(model, config.seed, first, BATCH, encode, decode)
        number = first + np.arange(BATCH)
        keep = np.isfinite(flux).all(1) & (flux[:, band] > faintest) & (number < stop)
        if redshift is not None:
            z = decode(code, model.low, model.high)[:, redshift]
            keep &= (z >= model.emulator.redshift_range[0]) & (z <= model.emulator.redshift_range[1])
        narrow = np.clip(flux, -65504, 65504).astype(np.float16)
        z_code = np.zeros(BATCH, np.uint16) if redshift is None else code[:, redshift]
        low_bits = (number & 0xFFFF).astype(np.uint16)
        rows = np.concatenate([narrow.view(np.uint16), z_code[:, None], low_bits[:, None]], axis=1)
        yield {"rows": rows[keep], "theta": code[keep], "draw": number[keep].astype(np.uint32)}
