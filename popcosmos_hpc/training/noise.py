r"""Score matching: flux errors of a survey to an uncertainty model.

For every band a trend of ln error with magnitude is fitted first, centre and width, by straight lines between
knots; then a diffusion learns the departures of all bands, whitened, given the magnitudes of all. A narrow
distribution about a steep trend, as of an error that is a fixed fraction of the flux, is beyond a small
network otherwise.
"""

import hashlib
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import ConfigurationError, TrainingError
from popcosmos_hpc.model.bundle import load_uncertainty, save_bundle
from popcosmos_hpc.model.diffusion import Diffusion, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.noise import LN_NANOMAGGIES, DiffusionUncertainty, Trend, asinh_magnitude
from popcosmos_hpc.model.noise_bundle import uncertainty_to_bundle
from popcosmos_hpc.training.error_model import simulate_errors
from popcosmos_hpc.training.fit import Schedule, train
from popcosmos_hpc.training.noise_accuracy import depths, measure
from popcosmos_hpc.training.noise_recipe import TableSource, UncertaintyRecipe, load_uncertainty_recipe
from popcosmos_hpc.training.noise_table import ErrorRows, read_errors
from popcosmos_hpc.training.prior import noised_draws, velocity_loss, whiten
from popcosmos_hpc.training.recipe_file import software

logger = logging.getLogger(__name__)

_HELD_OUT = 20_000
_EXAMPLES = 100_000  # least noised draws per round
_LEAST_ROWS = 50  # per band
_MOST_KNOTS = 24
_ROWS_PER_KNOT = 60
_STIFFNESS = 5.0  # rows: what holds a knot that few rows touch in line with its neighbours
_LEAST_WIDTH = 1e-3  # of ln error: narrower, and the rounding of floats would be learned
_LN_NORMAL = 0.6352  # minus the mean of ln |z| for a standard normal z
_FARTHEST = 10.0  # widths; beyond, one wild row would decide the scale of all, and shake the training
_MARGIN = 2.0  # of ln error, by which draws may leave the range of the training rows


def train_uncertainty(
    flux: np.ndarray,
    flux_err: np.ndarray,
    bands: tuple[str, ...],
    recipe: UncertaintyRecipe,
    checkpoint: Path | None = None,
) -> DiffusionUncertainty:
    """Train an uncertainty model on complete rows.

    Args:
        flux: (row, band) nanomaggies: noiseless ones if they are known, else as observed.
        flux_err: (row, band) nanomaggies.
        bands: their names.
        recipe: network and schedule.
        checkpoint: file for the state of training; a killed training goes on from it.

    Raises:
        ConfigurationError: the recipe softens a band that is none of these.
        TrainingError: fluxes or errors that are not finite, errors that are not positive, too few rows, a
            band of one flux only, or a loss that is not finite.
    """
    _check(flux, flux_err, bands)
    softening = _softening(flux_err, bands, recipe)
    magnitude = _magnitudes(flux, softening)
    ln_error = np.log(flux_err) - LN_NANOMAGGIES
    trend = fit_trend(magnitude, ln_error)
    departure = _departures(trend, magnitude, ln_error)
    far = np.abs(departure) > _FARTHEST
    logger.info("%d of %d errors lie beyond %g widths, and are held there", far.sum(), far.size, _FARTHEST)
    departure = np.clip(departure, -_FARTHEST, _FARTHEST)
    # The trend takes the mean away in each band: what is left of it stays with the network.
    mixing = whiten(departure).mixing if len(bands) > 1 else np.array([[departure.std()]])
    x = np.linalg.solve(mixing, departure.T).T.astype(np.float32)
    shift, scale = magnitude.mean(axis=0), magnitude.std(axis=0)
    condition = ((magnitude - shift) / scale).astype(np.float32)
    diffusion = _fit_diffusion(x, condition, recipe, checkpoint)
    real = lambda values: jnp.asarray(values, jnp.float32)  # noqa: E731
    return DiffusionUncertainty(
        bands=tuple(bands),
        diffusion=diffusion,
        trend=trend,
        mixing=real(mixing),
        softening=real(softening),
        condition_shift=real(shift),
        condition_scale=real(scale),
        condition_range=real(np.stack([magnitude.min(axis=0), magnitude.max(axis=0)])),
        clip=(round(float(ln_error.min()) - _MARGIN, 3), round(float(ln_error.max()) + _MARGIN, 3)),
    )


def _softening(flux_err: np.ndarray, bands: tuple[str, ...], recipe: UncertaintyRecipe) -> np.ndarray:
    """Softenings (band,) of the asinh magnitudes [nanomaggies]."""
    if strange := [band for band in recipe.softening if band not in bands]:
        raise ConfigurationError(
            f"bands among {', '.join(bands)}", ", ".join(strange), "softening", "Correct its bands."
        )
    default = np.percentile(flux_err, 16, axis=0)
    return np.array([recipe.softening.get(band, d) for band, d in zip(bands, default, strict=True)])


def _magnitudes(flux: np.ndarray, softening: np.ndarray) -> np.ndarray:
    """Asinh magnitudes (row, band), which differ in every band."""
    magnitude = np.asarray(
        asinh_magnitude(jnp.asarray(flux, jnp.float32), jnp.asarray(softening, jnp.float32)[None])
    )
    if np.any(np.ptp(magnitude, axis=0) == 0):
        raise TrainingError(
            "fluxes that vary in each band", "a band of one flux only", "training rows",
            "Leave that band out.",
        )  # fmt: skip
    return magnitude


def _fit_diffusion(
    x: np.ndarray, condition: np.ndarray, recipe: UncertaintyRecipe, checkpoint: Path | None
) -> Diffusion:
    schedule = NoiseSchedule("vp")
    n_bands = x.shape[1]
    network = initial_score_network(
        jax.random.PRNGKey(recipe.seed), n_bands, n_bands, recipe.width, recipe.depth
    )
    pace = Schedule(
        recipe.n_rounds, recipe.batch_size, recipe.learning_rate, recipe.seed, recipe.average, clip=1.0
    )
    copies = -(-_EXAMPLES // len(x))
    x, condition = np.tile(x, (copies, 1)), np.tile(condition, (copies, 1))
    source = noised_draws(x, schedule, recipe.seed, condition)
    diffusion = Diffusion(network, schedule, "velocity", recipe.n_steps)
    return train(diffusion, velocity_loss, source, pace, checkpoint, recipe.name)


def fit_trend(magnitude: np.ndarray, ln_error: np.ndarray) -> Trend:
    """Centre and width of ln error (row, band) against the magnitude (row, band) of each band.

    Both are least-squares lines between knots, the width that of the logarithms of the departures, as for a
    normal distribution. Knots are closer, in rows, towards both ends, where few rows may span many
    magnitudes.
    """
    n_knots = int(np.clip(len(magnitude) // _ROWS_PER_KNOT, 2, _MOST_KNOTS))
    share = 0.5 * (1 - np.cos(np.pi * np.arange(n_knots) / (n_knots - 1)))
    knots = np.quantile(magnitude, share, axis=0).T
    # Equal magnitudes (no flux at all) make equal knots, and a line needs two.
    knots = knots + np.ptp(knots, axis=1, keepdims=True) * 1e-4 * np.arange(n_knots)
    centre, width = [], []
    for m, y, at in zip(magnitude.T, ln_error.T, knots, strict=True):
        hats = np.stack([np.interp(m, at, one) for one in np.eye(n_knots)], axis=1)
        stiff = hats.T @ hats + _STIFFNESS * _bending(at)
        middle = np.linalg.solve(stiff, hats.T @ y)
        distance = np.maximum(np.abs(y - hats @ middle), 0.1 * _LEAST_WIDTH)
        ln_width = np.linalg.solve(stiff, hats.T @ (np.log(distance) + _LN_NORMAL))
        centre.append(middle)
        width.append(np.maximum(np.exp(ln_width), _LEAST_WIDTH))
    return Trend(*(jnp.asarray(np.stack(part), jnp.float32) for part in (knots, centre, width)))


def _bending(knots: np.ndarray) -> np.ndarray:
    """Quadratic form (knot, knot) of how far values at the knots are from a straight line."""
    left, right = np.diff(knots)[:-1], np.diff(knots)[1:]
    rows = np.zeros((len(knots) - 2, len(knots)))
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        rows[index, index : index + 3] = -b / (a + b), 1.0, -a / (a + b)
    return rows.T @ rows


def _departures(trend: Trend, magnitude: np.ndarray, ln_error: np.ndarray) -> np.ndarray:
    centre, width = (np.asarray(part) for part in jax.vmap(trend)(jnp.asarray(magnitude, jnp.float32)))
    return (ln_error - centre) / width


def _check(flux: np.ndarray, flux_err: np.ndarray, bands: tuple[str, ...]) -> None:
    expected = f"finite fluxes and positive errors, each (row, {len(bands)})"
    if flux.ndim != 2 or flux.shape != flux_err.shape or flux.shape[1] != len(bands) or not bands:
        raise TrainingError(expected, f"shapes {flux.shape} and {flux_err.shape}", "training rows")
    least = _LEAST_ROWS * len(bands)
    if len(flux) < least:
        raise TrainingError(
            f"at least {least} complete rows",
            str(len(flux)),
            "training rows",
            "Leave out the band that most rows lack, or select more rows.",
        )
    with np.errstate(invalid="ignore"):
        bad = ~(np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0))
    if bad.any():
        worst = ", ".join(f"{band} in {n} rows" for band, n in zip(bands, bad.sum(axis=0), strict=True) if n)
        raise TrainingError(expected, worst, "training rows", "Remove or correct these rows.")


def train_uncertainty_from_config(config: Path, out: Path, checkpoint_dir: Path | None = None) -> Path:
    """Train the uncertainty model of a configuration file and write its bundle; see below for errors."""
    return train_uncertainty_bundle(load_uncertainty_recipe(config), out, checkpoint_dir)


def training_rows(recipe: UncertaintyRecipe) -> ErrorRows:
    """The rows of a recipe's source; errors as `read_errors` and `simulate_errors`."""
    source = recipe.source
    if isinstance(source, TableSource):
        return read_errors(source, recipe.seed)
    simulated = simulate_errors(source, recipe.seed)
    return ErrorRows(tuple(source.bands), *simulated, {"simulated": len(simulated.flux)})


def train_uncertainty_bundle(
    recipe: UncertaintyRecipe, out: Path, checkpoint_dir: Path | None = None
) -> Path:
    """Train on most rows, measure against the rest, and write an uncertainty bundle.

    Returns:
        The folder of the bundle.

    Raises:
        TrainingError: as `train_uncertainty`, or there are no rows.
        ConfigurationError: a file, column or band does not exist.
        SchemaError: the table cannot be read.
    """
    rows = training_rows(recipe)
    order = np.random.default_rng([recipe.seed, 0]).permutation(len(rows.flux))
    n_test = min(_HELD_OUT, len(order) // 5)
    test, rest = order[:n_test], order[n_test:]
    digest = hashlib.sha256(np.stack([rows.flux, rows.flux_err]).tobytes()).hexdigest()
    settings = json.dumps([recipe.model_dump(mode="json"), digest], sort_keys=True)
    name = f"{recipe.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.eqx"
    state = checkpoint_dir / name if checkpoint_dir else None
    model = train_uncertainty(rows.flux[rest], rows.flux_err[rest], rows.bands, recipe, state)
    measured = measure(model, rows.flux[test], rows.flux_err[test], recipe.seed + 1)
    logger.info("against %d held-out rows: %s", n_test, measured["summary"])
    facts, arrays = uncertainty_to_bundle(model)
    manifest = {
        "name": recipe.name,
        "description": recipe.description,
        **facts,
        "depth": depths(rows.flux, rows.flux_err, rows.bands),
        "accuracy": measured["summary"],
        "quantiles": measured["quantiles"],
        "training_rows": {**rows.counts, "held_out": n_test, "sha256": digest},
        "recipe": recipe.model_dump(mode="json"),
        "citations": list(recipe.citations),
        "software": software(),
    }
    save_bundle(out, manifest, arrays)
    load_uncertainty(out)
    return out
