"""Posteriors in few numbers: quantiles of parameters, derived quantities and redshift."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.model.galaxy import GalaxyModel

QUANTILES = (2.5, 16.0, 50.0, 84.0, 97.5)
"""Percentages of every quantity's summary."""

_LOWER_HALF = (0.1, 1.0, 2.5, 5.0, 10.0, 16.0, 20.0, 25.0, 30.0, 40.0)
REDSHIFT_QUANTILES = (*_LOWER_HALF, 50.0, *(100.0 - level for level in reversed(_LOWER_HALF)))
"""Percentages that stand for the redshift's distribution."""

_CHUNK = 8192


class Summary(NamedTuple):
    """Quantiles of many posteriors.

    Attributes:
        values: (galaxy, quantity, quantile) float32, quantities as `summary_names`, at `QUANTILES`.
        redshift_quantiles: (galaxy, 21) float32, at `REDSHIFT_QUANTILES`; NaN without a redshift.
    """

    values: np.ndarray
    redshift_quantiles: np.ndarray


def summary_names(model: GalaxyModel) -> tuple[str, ...]:
    """Parameters, then the emulator's derived quantities."""
    return model.space.names + model.emulator.derived_names


def summarise(model: GalaxyModel, posterior: Posterior) -> Summary:
    """Quantiles over draws; NaN for galaxies without draws.

    Args:
        model: the galaxy model.
        posterior: NumPy arrays with leading axis galaxy.
    """
    theta = np.asarray(posterior.theta, np.float32)
    n_galaxies, n_draws, n_parameters = theta.shape
    derived = derive(model, theta.reshape(-1, n_parameters))
    derived = derived.reshape(n_galaxies, n_draws, len(model.emulator.derived_names))
    quantities = np.concatenate([theta, derived], axis=-1)
    values = _quantiles(quantities, QUANTILES)
    if "redshift" in model.space.names:
        redshift = quantities[..., model.space.index("redshift")]
        by_level = _quantiles(redshift[..., None], REDSHIFT_QUANTILES)[:, 0]
    else:
        by_level = np.full((n_galaxies, len(REDSHIFT_QUANTILES)), np.nan, np.float32)
    return Summary(np.ascontiguousarray(values), np.ascontiguousarray(by_level))


def derive(model: GalaxyModel, theta: np.ndarray) -> np.ndarray:
    """Derived quantities of many parameter vectors, (row, derived) float32.

    Args:
        model: the galaxy model.
        theta: (row, param); rows with NaN give NaN.
    """
    size = len(model.emulator.derived_names)
    result = np.full((len(theta), size), np.nan, np.float32)
    good = np.flatnonzero(np.all(np.isfinite(theta), axis=-1))
    if size == 0 or len(good) == 0:
        return result
    for start in range(0, len(good), _CHUNK):
        rows = good[start : start + _CHUNK]
        # One shape for every chunk: the last is filled up with copies of its first row.
        padded = np.concatenate([rows, np.full(_CHUNK - len(rows), rows[0])])
        result[rows] = np.asarray(_derive_chunk(model, jnp.asarray(theta[padded])))[: len(rows)]
    return result


@eqx.filter_jit
def _derive_chunk(model, theta):
    # In small pieces of one shape, so that a row's value does not depend on where it stands.
    return jax.lax.map(model.emulator.derived, theta, batch_size=256)


def _quantiles(quantities: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """(galaxy, draw, quantity) -> (galaxy, quantity, level), float32."""
    percentiles = np.percentile(quantities.astype(np.float64), levels, axis=1)
    return np.moveaxis(percentiles, 0, -1).astype(np.float32)
