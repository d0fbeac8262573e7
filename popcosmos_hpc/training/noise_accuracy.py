"""How well an uncertainty model draws the errors of rows that it has not seen."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.model.noise import LN_NANOMAGGIES, DiffusionUncertainty, asinh_magnitude
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.training.two_sample import compare_draws

_QUANTILES = (16, 50, 84)
_BINS = 8
_BATCH = 10_000
_NEAR = 0.4  # of ln S/N: a factor of one and a half


def draw_errors(model, flux: np.ndarray, seed: int) -> np.ndarray:
    """One draw of the errors (row, band) [nanomaggies] at each of the fluxes (row, band)."""
    keys = jax.random.split(jax.random.PRNGKey(seed), len(flux))
    one = eqx.filter_jit(jax.vmap(lambda key, f: model.sample(key, f)))
    parts = [
        np.asarray(one(keys[start : start + _BATCH], jnp.asarray(flux[start : start + _BATCH], jnp.float32)))
        for start in range(0, len(flux), _BATCH)
    ]
    return np.concatenate(parts)


def magnitudes(model: DiffusionUncertainty, flux: np.ndarray) -> np.ndarray:
    """Asinh magnitudes (row, band) of fluxes, with the model's softening."""
    return np.asarray(asinh_magnitude(jnp.asarray(flux, jnp.float32), model.softening[None]))


def measure(model: DiffusionUncertainty, flux: np.ndarray, flux_err: np.ndarray, seed: int) -> dict[str, Any]:
    """Differences between a model's draws and the errors of held-out rows.

    Rows are split in halves for the classifier: it must not meet the same fluxes on both sides.

    Args:
        model: the trained model.
        flux: (row, band) held out.
        flux_err: (row, band) theirs.
        seed: of the draws.

    Returns:
        `quantiles`: per band and bin of magnitude, the median of ln error [ln nanomaggies], and of its
        departure from the trend the 16th, 50th and 84th percentile, of the table and of the model (the
        trend itself would fill wide bins); `summary`: the largest differences of the medians and of the
        outer percentiles, each with its band, magnitude, and standard error from the number of rows, and
        the two-sample comparison of departures, in widths of the trend, together with magnitudes.
    """
    magnitude, drawn = magnitudes(model, flux), draw_errors(model, flux, seed)
    centre, width = (np.asarray(part) for part in jax.vmap(model.trend)(jnp.asarray(magnitude)))
    centre = centre + LN_NANOMAGGIES
    table, model_ln = np.log(flux_err) - centre, np.log(drawn) - centre
    quantiles = {
        band: _by_magnitude(magnitude[:, k], centre[:, k], table[:, k], model_ln[:, k])
        for k, band in enumerate(model.bands)
    }
    half = len(flux) // 2
    first = np.concatenate([model_ln / width, magnitude], axis=1)[:half]
    second = np.concatenate([table / width, magnitude], axis=1)[half:]
    names = tuple(f"error of {band}" for band in model.bands) + model.bands
    return {
        "quantiles": quantiles,
        "summary": {
            "median": _largest(quantiles, (1,)),
            "16th_or_84th": _largest(quantiles, (0, 2)),
            **compare_draws(first, second, names),
        },
    }


def _by_magnitude(
    magnitude: np.ndarray, centre: np.ndarray, table: np.ndarray, model: np.ndarray
) -> list[dict[str, Any]]:
    """Percentiles of departures of ln error from the trend's centre, in bins of equally many rows."""
    rows = []
    for part in np.array_split(np.argsort(magnitude), _BINS):
        low, _, high = true = np.percentile(table[part], _QUANTILES)
        rows.append(
            {
                "magnitude": round(float(np.median(magnitude[part])), 2),
                "rows": len(part),
                "ln_error": round(float(np.median((centre + table)[part])), 3),
                "table": [round(float(value), 4) for value in true],
                "model": [round(float(value), 4) for value in np.percentile(model[part], _QUANTILES)],
                # Of a difference of medians of two normal sets; outer percentiles have a fifth more.
                "standard_error": round(1.2533 * 0.5 * float(high - low) * (2 / len(part)) ** 0.5, 4),
            }
        )
    return rows


def _largest(quantiles: dict[str, list[dict]], which: tuple[int, ...]) -> dict[str, Any]:
    """The largest difference of ln error among some percentiles."""
    found = [
        (abs(row["model"][k] - row["table"][k]), band, row)
        for band, rows in quantiles.items()
        for row in rows
        for k in which
    ]
    value, band, row = max(found, key=lambda item: item[0])
    return {
        "value": round(value, 4),
        "band": band,
        "magnitude": row["magnitude"],
        "standard_error": row["standard_error"],
    }


def depths(flux: np.ndarray, flux_err: np.ndarray, bands: tuple[str, ...]) -> dict[str, float]:
    """The 5-sigma AB magnitude of each band: the median over the tenth of the rows nearest to 5 sigma.

    A band in which these rows are far from 5 sigma has no depth in the table, and is left out.
    """
    found = {}
    for index, band in enumerate(bands):
        error = flux_err[:, index]
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(np.log(np.maximum(flux[:, index], 0) / error / 5.0))
        nearest = np.argsort(distance)[: max(len(flux) // 10, 1)]
        if np.median(distance[nearest]) < _NEAR:
            found[band] = round(AB_ZERO_POINT - 2.5 * float(np.log10(5 * np.median(error[nearest]))), 3)
    return found
