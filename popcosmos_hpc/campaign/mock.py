"""A mock survey drawn from a model: galaxies of the prior, faint and noisy, with their truth."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.files import replace_atomically

logger = logging.getLogger(__name__)

# 5 sigma in 2 arcsec: Kuijken et al. 2019 (arXiv:1902.11265), Table 2 for KiDS, section 2 for VIKING.
KIDS_DEPTHS = {
    "u": 24.2,
    "g": 25.1,
    "r": 25.0,
    "i": 23.7,
    "Z": 22.7,
    "Y": 22.0,
    "J": 21.8,
    "H": 21.1,
    "Ks": 21.2,
}
_INFRARED = ("Z", "Y", "J", "H", "Ks", "z", "y")
_ZERO_POINT = 22.5  # AB magnitude of one nanomaggy
_BATCH = 8192
_MOST_BATCHES = 2000
_FIRST_ID = 2**53 + 1  # beyond what a double can tell apart, as real identifiers are


@dataclass(frozen=True)
class MockSurvey:
    """What the mock survey sees.

    Args:
        n_galaxies: galaxies that it detects.
        seed: of all random numbers.
        depths: 5-sigma AB magnitude per band; bands not named have `default_depth`.
        default_depth: of the other bands.
        selection_band: band of the magnitude limit; the first band if it is not there.
        magnitude_limit: faintest observed magnitude.
        missing_fraction: share of galaxies outside the infrared bands' coverage.
        centre: ra and dec of the patch [deg].
        width: of the patch in both directions [deg].
    """

    n_galaxies: int
    seed: int = 1
    depths: dict[str, float] = field(default_factory=lambda: dict(KIDS_DEPTHS))
    default_depth: float = 22.0
    selection_band: str = "r"
    magnitude_limit: float = 23.0
    missing_fraction: float = 0.04
    centre: tuple[float, float] = (180.0, 0.0)
    width: float = 2.0

    def flux_errors(self, bands: tuple[str, ...]) -> np.ndarray:
        """1-sigma errors (band,) [nanomaggies]."""
        depths = np.array([self.depths.get(band, self.default_depth) for band in bands])
        return 10 ** (0.4 * (_ZERO_POINT - depths)) / 5


def write_mock(path: Path, model: GalaxyModel, survey: MockSurvey) -> Path:
    """Write a mock survey as a Parquet table.

    Columns: object_id, ra, dec, flux_<band> and flux_err_<band> [nanomaggies, NaN where not observed],
    truth_<parameter> and truth_<derived quantity>. Two further rows have no coordinates, so that there is
    something to refuse.

    Args:
        path: file to write; it appears as a whole.
        model: galaxies and noise; galaxies follow its prior, given that they are detected.
        survey: what is detected.

    Raises:
        ConfigurationError: the prior has next to no galaxies that bright.
    """
    theta, flux, errors = _draw(model, survey)
    random = np.random.default_rng([survey.seed, 1])
    flux = _cut_coverage(random, model.bands, flux, survey.missing_fraction)
    columns = _positions(random, survey)
    for index, band in enumerate(model.bands):
        columns[f"flux_{band}"] = flux[:, index]
        columns[f"flux_err_{band}"] = np.where(np.isnan(flux[:, index]), np.nan, errors[index]).astype("f4")
    derived = np.asarray(jax.jit(jax.vmap(model.emulator.derived))(jnp.asarray(theta)))
    truth = np.concatenate([theta, derived.reshape(len(theta), -1)], axis=1)
    for index, name in enumerate((*model.space.names, *model.emulator.derived_names)):
        columns[f"truth_{name}"] = truth[:, index]
    with replace_atomically(path) as partial:
        pq.write_table(_with_bad_rows(pa.table(columns)), partial)
    return path


def _draw(model: GalaxyModel, survey: MockSurvey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, fluxes and flux errors of detected galaxies, by rejection from the prior's wide draws."""
    errors = survey.flux_errors(model.bands).astype(np.float32)
    band = model.bands.index(survey.selection_band) if survey.selection_band in model.bands else 0
    limit = 10 ** (0.4 * (_ZERO_POINT - survey.magnitude_limit))
    key = jax.random.PRNGKey(survey.seed)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in range(_MOST_BATCHES):
        keys = jax.random.split(jax.random.fold_in(key, batch), _BATCH)
        theta, flux, log_weight = (np.asarray(x) for x in _simulate(model, keys, jnp.asarray(errors)))
        with np.errstate(invalid="ignore"):
            seen = (flux[:, band] > limit) & np.all(np.isfinite(flux), axis=1) & np.isfinite(log_weight)
        kept.append((theta[seen], flux[seen], log_weight[seen]))
        weights = np.concatenate([item[2] for item in kept])
        # Expected number that survives the rejection below, with room for its scatter.
        if len(weights) and np.exp(weights - weights.max()).sum() > 1.2 * survey.n_galaxies + 20:
            break
    theta, flux, log_weight = (np.concatenate(column) for column in zip(*kept, strict=True))
    uniform = np.random.default_rng([survey.seed, 0]).random(len(log_weight))
    chosen = np.flatnonzero(np.log(uniform) < log_weight - log_weight.max(initial=-np.inf))
    if len(chosen) < survey.n_galaxies:
        raise ConfigurationError(
            f"{survey.n_galaxies} galaxies brighter than {survey.magnitude_limit} mag",
            f"{len(chosen)} in {_MOST_BATCHES * _BATCH} draws of the prior",
            "mock survey",
            "Ask for fewer galaxies or a fainter limit.",
        )
    chosen = chosen[: survey.n_galaxies]
    return theta[chosen], flux[chosen], errors


@eqx.filter_jit
def _simulate(model: GalaxyModel, keys, errors):
    """Draws of the wide proposal, their noisy fluxes, and ln prior over proposal."""
    state = jnp.full(errors.shape, BandState.OBSERVED.value, jnp.int8)

    def one(key):
        draw_key, noise_key = jax.random.split(key)
        u, log_weight = model.prior.propose_base(draw_key)
        theta = model.theta(u)
        return theta, model.observe(noise_key, theta, errors, state).flux, log_weight

    return jax.vmap(one)(keys)


def _positions(random: np.random.Generator, survey: MockSurvey) -> dict[str, np.ndarray]:
    """Identifiers, and positions uniform over a small patch."""
    half = survey.width / 2
    offset = random.uniform(-half, half, (2, survey.n_galaxies))
    dec = survey.centre[1] + offset[1]
    return {
        "object_id": _FIRST_ID + 3 * np.arange(survey.n_galaxies, dtype=np.int64),
        "ra": survey.centre[0] + offset[0] / np.cos(np.radians(survey.centre[1])),
        "dec": dec,
    }


def _cut_coverage(random, bands: tuple[str, ...], flux: np.ndarray, fraction: float) -> np.ndarray:
    """NaN in the infrared bands of some galaxies."""
    infrared = np.array([band in _INFRARED for band in bands])
    if infrared.all():
        return flux
    outside = random.random(len(flux)) < fraction
    return np.where(outside[:, None] & infrared[None, :], np.float32(np.nan), flux)


def _with_bad_rows(table: pa.Table) -> pa.Table:
    bad = table.slice(0, 2)
    ids = pa.array(bad["object_id"].to_numpy() - 3 * len(bad), pa.int64())
    nowhere = pa.array(np.full(len(bad), np.nan))
    bad = bad.set_column(bad.column_names.index("object_id"), "object_id", ids)
    return pa.concat_tables([table, bad.set_column(bad.column_names.index("dec"), "dec", nowhere)])
