r"""A population from photometry alone: the heart of pop-cosmos.

Mock galaxies are drawn from the diffusion prior, pass through emulator, calibration, uncertainty model,
noise and selection, and are compared with the observed galaxies by an optimal-transport distance
(Alsing et al. 2024, arXiv:2402.00935; Thorp et al. 2025, arXiv:2506.12122). Its gradient runs back through
all of that into the score network, the zero points and the strengths of emission lines. No galaxy's
redshift is ever used.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jaxtyping import Float, Scalar
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy.stats import qmc

from popcosmos_hpc.errors import TrainingError
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.noise import AbstractUncertainty
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.training.distances import random_directions, sinkhorn_distance, sliced_distance
from popcosmos_hpc.training.fit import Schedule, train

logger = logging.getLogger(__name__)

_FAR = 3.0  # robust widths beyond which features are compressed: one outlier must not drive the transport
_EDGE = 0.1  # mag: softness of the selection's edge in the gradient
_LN10 = 2.302585


class PopulationSchedule(BaseModel):
    """Length and pace of a training from photometry.

    Attributes:
        distance: `sinkhorn`, or `sliced` (cheaper, and less noisy for many bands).
        n_mock: mock galaxies per step, before selection; a power of two.
        n_data: observed galaxies per step.
        n_directions: of the sliced distance.
        epsilon: regularisation of the Sinkhorn divergence.
        steps_per_round: gradient steps between two looks at the held-out distance.
        n_rounds: most rounds.
        patience: rounds without a better held-out distance after which training ends.
        learning_rate: peak of the cosine.
        average: decay per step of the averaged weights.
        train_zero_points: whether zero points are found jointly.
        zero_point_width: their prior width [fraction].
        train_lines: whether strengths of emission lines are found jointly.
        line_width: their prior width [ln].
        seed: of all random numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    distance: Literal["sinkhorn", "sliced"] = "sliced"
    n_mock: int = Field(default=2048, ge=64)
    n_data: int = Field(default=2048, ge=64)
    n_directions: int = Field(default=64, ge=1)
    epsilon: float = Field(default=0.05, gt=0)
    steps_per_round: int = Field(default=20, ge=1)
    n_rounds: int = Field(default=50, ge=1)
    patience: int = Field(default=15, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    average: float = Field(default=0.98, ge=0, lt=1)
    train_zero_points: bool = False
    zero_point_width: float = Field(default=0.05, gt=0)
    train_lines: bool = False
    line_width: float = Field(default=0.3, gt=0)
    seed: int = 1

    @field_validator("n_mock")
    @classmethod
    def _even(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("a power of two (the draws of a Sobol sequence are even only then)")
        return value


class Selection(NamedTuple):
    """Observed fluxes that a galaxy must exceed: per band [nanomaggies]; -inf where there is no cut."""

    least_flux: tuple[float, ...]

    @classmethod
    def from_magnitudes(cls, limits: dict[str, float], bands: tuple[str, ...]) -> "Selection":
        """From the faintest AB magnitude per band.

        Raises:
            TrainingError: a band is unknown.
        """
        if strange := sorted(set(limits) - set(bands)):
            raise TrainingError(
                f"limits in the bands {', '.join(bands)}",
                ", ".join(strange),
                "selection",
                "Correct `limits`.",
            )
        faintest = np.array([limits.get(band, np.inf) for band in bands])
        with np.errstate(over="ignore"):
            flux = np.where(np.isfinite(faintest), 10 ** (0.4 * (AB_ZERO_POINT - faintest)), -np.inf)
        return cls(tuple(float(value) for value in flux))

    def passes(self, flux: np.ndarray) -> np.ndarray:
        """Which galaxies (galaxy,) of fluxes (galaxy, band) are selected."""
        return np.all(flux > np.array(self.least_flux), axis=1)

    def weight(self, flux: Float[Array, " band"]) -> Scalar:
        """One for a selected galaxy and zero for another, with the gradient of a soft edge."""
        cut = np.flatnonzero(np.isfinite(self.least_flux))
        if not cut.size:
            return jnp.ones(())
        excess = flux[cut] / jnp.asarray(np.array(self.least_flux)[cut], flux.dtype) - 1.0
        soft = jnp.prod(jax.nn.sigmoid(excess / (0.4 * _LN10 * _EDGE)))
        hard = jnp.all(excess > 0.0).astype(flux.dtype)
        return hard + soft - jax.lax.stop_gradient(soft)


class Features(NamedTuple):
    """What is compared: asinh magnitudes of all bands, and colours of neighbouring ones, in robust widths.

    Attributes:
        softening: (band,) flux at which asinh magnitudes become linear [nanomaggies].
        centre: (feature,) medians of the data and `width`: half the distance of their 16th and 84th
            percentiles.
    """

    softening: Array
    centre: Array
    width: Array

    @classmethod
    def of(cls, flux: np.ndarray, flux_err: np.ndarray) -> "Features":
        """Fit softening, centres and widths to data (galaxy, band)."""
        softening = np.median(flux_err, axis=0).astype(np.float32)
        raw = _raw_features(flux, softening)
        low, centre, high = np.percentile(raw, [16, 50, 84], axis=0)
        return cls(
            *(
                jnp.asarray(part, jnp.float32)
                for part in (softening, centre, np.maximum(0.5 * (high - low), 1e-3))
            )
        )

    def __call__(self, flux: Array) -> Array:
        """Features (..., feature) of fluxes (..., band) [nanomaggies]."""
        batch = flux.shape[:-1]
        raw = _raw_features(flux, jnp.broadcast_to(self.softening, flux.shape))
        size = (*batch, raw.shape[-1])
        standard = (raw - jnp.broadcast_to(self.centre, size)) / jnp.broadcast_to(self.width, size)
        return _FAR * jnp.arcsinh(standard / _FAR)


def _raw_features(flux, softening):
    magnitude = -(2.5 / _LN10) * jnp.arcsinh(flux / (2.0 * softening))
    return jnp.concatenate([magnitude, magnitude[..., :-1] - magnitude[..., 1:]], axis=-1)


class Forward(eqx.Module):
    """From base draws to selected, noisy photometry; what is trained is in here.

    Args:
        galaxy: prior, emulator and likelihood; its prior is a diffusion.
        uncertainty: of the survey.
        log_zero_points: (band,) corrections to the likelihood's zero points.
        log_lines: (line,) corrections to line luminosities; empty for emulators without lines.
        selection: of the survey.
    """

    galaxy: GalaxyModel
    uncertainty: AbstractUncertainty
    log_zero_points: Array
    log_lines: Array
    selection: Selection = eqx.field(static=True)

    def calibrated(self) -> GalaxyModel:
        """The galaxy model with the corrections applied."""
        galaxy = eqx.tree_at(
            lambda g: g.likelihood.zero_points,
            self.galaxy,
            self.galaxy.likelihood.zero_points * jnp.exp(self.log_zero_points),
        )
        if not self.log_lines.size:
            return galaxy
        shift = lambda g: g.emulator.lines.network.output_shift  # noqa: E731  (log10 of luminosities)
        return eqx.tree_at(shift, galaxy, shift(galaxy) + self.log_lines / _LN10)

    def observe(self, key: Array, u: Array) -> tuple[Array, Scalar]:
        """Noisy fluxes (band,) [nanomaggies] of a base draw u (param,), and its weight after selection."""
        galaxy = self.calibrated()
        error_key, noise_key = jax.random.split(key)
        theta = galaxy.theta(u)
        predicted, variance = galaxy.moments(theta)
        error = jax.lax.stop_gradient(self.uncertainty.sample(error_key, predicted))
        noise = galaxy.likelihood.standard_noise(noise_key, predicted.shape)
        flux = predicted + noise * jnp.sqrt(error**2 + jax.lax.stop_gradient(variance))
        low, high = galaxy.emulator.redshift_range
        redshift = galaxy.redshift(theta)
        inside = (redshift >= low) & (redshift <= high) & jnp.all(jnp.isfinite(flux))
        return jnp.where(inside, flux, 0.0), jnp.where(inside, self.selection.weight(flux), 0.0)


def frozen(forward: Forward, schedule: PopulationSchedule) -> Forward:
    """The same model, through which gradients reach the score network and wanted corrections only."""
    stopped = jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, forward)
    parts = [lambda f: f.galaxy.prior.diffusion]
    parts += [lambda f: f.log_zero_points] if schedule.train_zero_points else []
    parts += [lambda f: f.log_lines] if schedule.train_lines else []
    for part in parts:
        stopped = eqx.tree_at(part, stopped, part(forward))
    return stopped


def base_draws(seed: Array | int, count: int, size: int) -> Float[Array, "mock dim"]:
    """Standard normal draws that fill space evenly: a Sobol sequence, shifted at random by the seed.

    Their projections scatter far less than those of independent draws, and so does the gradient of a
    distance between distributions (Cranley & Patterson 1976; Owen 1998).
    """
    points = qmc.Sobol(size, scramble=False).random(count).astype(np.float32)
    shift = jax.random.uniform(jax.random.PRNGKey(seed), (1, size))
    uniform = (jnp.asarray(points) + shift) % 1.0
    return ndtri(jnp.clip(uniform, 1e-7, 1.0 - 1e-7))


def mock_photometry(forward: Forward, seed: Array | int, count: int) -> tuple[Array, Array]:
    """Noisy fluxes (mock, band) and weights (mock,) of `count` draws of a seed."""
    u = base_draws(seed, count, forward.galaxy.space.size)
    keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), 1), count)
    return jax.vmap(forward.observe)(keys, u)


def make_distance(schedule: PopulationSchedule) -> Callable[..., Scalar]:
    """Function of mock features, mock weights, data features and a key -> distance."""

    def distance(mock, weight, data, key):
        if schedule.distance == "sinkhorn":
            return sinkhorn_distance(mock, weight, data, schedule.epsilon)
        return sliced_distance(
            mock, weight, data, random_directions(key, schedule.n_directions, data.shape[1])
        )

    return distance


def train_population(
    forward: Forward,
    flux: np.ndarray,
    flux_err: np.ndarray,
    schedule: PopulationSchedule,
    checkpoint: Path | None = None,
    name: str = "population",
) -> tuple[Forward, dict[str, float]]:
    """Train a population on photometry.

    Args:
        forward: where to start; its prior is a `DiffusionPrior`.
        flux: (galaxy, band) observed fluxes [nanomaggies] of selected galaxies, complete in all bands.
        flux_err: (galaxy, band) their errors.
        schedule: length and pace.
        checkpoint: file for the state of training; a killed training goes on from it.
        name: for the log.

    Returns:
        The trained model, and distances to held-out galaxies: `start`, `end`, and `floor`, that between
        two disjoint halves of the data.

    Raises:
        TrainingError: too few galaxies, no mock galaxy passes the selection, a prior that is no diffusion,
            or a loss that is not finite.
    """
    if not isinstance(forward.galaxy.prior, DiffusionPrior):
        raise TrainingError(
            "a diffusion prior", type(forward.galaxy.prior).__name__, name, "Start from a population bundle."
        )
    _check_data(flux, flux_err, forward, name)
    features = Features.of(flux, flux_err)
    data = np.asarray(features(jnp.asarray(flux, jnp.float32)))
    order = np.random.default_rng([schedule.seed, 0]).permutation(len(data))
    held, seen = np.split(data[order], [len(data) // 5])
    judge = make_judge(features, held, schedule)
    _check_acceptance(forward, schedule, name)
    start = judge(forward)
    pace = Schedule(
        schedule.n_rounds, schedule.n_data, schedule.learning_rate, schedule.seed, schedule.average, 1.0,
        schedule.patience,
    )  # fmt: skip
    trained = train(
        forward, _make_loss(features, schedule, len(seen)), _batches_of(seen, schedule), pace, checkpoint,
        name, per_batch=True, validate=judge,
    )  # fmt: skip
    found = {"start": start, "end": judge(trained), "floor": _floor(held, seen, schedule)}
    logger.info("%s: held-out distance %.5f at the start, %.5f at the end; floor %.5f", name, *found.values())
    return trained, found


def _make_loss(features: Features, schedule: PopulationSchedule, n_seen: int):
    distance = make_distance(schedule)

    def loss(model: Forward, inputs: Array, targets: Array) -> Scalar:
        model = frozen(model, schedule)
        seed = inputs[0, 0].astype(jnp.int32)
        flux, weight = mock_photometry(model, seed, schedule.n_mock)
        key = jax.random.fold_in(jax.random.PRNGKey(schedule.seed), seed)
        value = distance(features(flux), weight, targets, key)
        penalty = jnp.sum((model.log_zero_points / schedule.zero_point_width) ** 2)
        return value + (penalty + jnp.sum((model.log_lines / schedule.line_width) ** 2)) / n_seen

    return loss


def _batches_of(seen: np.ndarray, schedule: PopulationSchedule):
    """Source of (seeds, data features); a batch uses the seed of its first row."""

    def source(index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([schedule.seed, 1, index])
        count = schedule.steps_per_round * schedule.n_data
        rows = rng.integers(0, len(seen), count)
        return rng.integers(0, 2**24, count).astype(np.float32)[:, None], seen[rows]

    return source


def make_judge(
    features: Features, held: np.ndarray, schedule: PopulationSchedule
) -> Callable[[Forward], float]:
    """Distance of a model to held-out data features, always with the same random numbers."""
    distance = make_distance(schedule)
    target = jnp.asarray(held[: 4 * schedule.n_data])

    @eqx.filter_jit
    def judge(model):
        flux, weight = mock_photometry(model, schedule.seed + 1, 4 * schedule.n_mock)
        return distance(features(flux), weight, target, jax.random.PRNGKey(schedule.seed))

    return lambda model: float(judge(model))


def _floor(held: np.ndarray, seen: np.ndarray, schedule: PopulationSchedule) -> float:
    """Distance between two disjoint parts of the data: no model comes closer with as many galaxies."""
    first, second = (jnp.asarray(part[: 4 * schedule.n_data]) for part in (seen, held))
    measure = eqx.filter_jit(make_distance(schedule))
    return float(measure(first, jnp.ones(len(first)), second, jax.random.PRNGKey(schedule.seed)))


def _check_data(flux: np.ndarray, flux_err: np.ndarray, forward: Forward, name: str) -> None:
    n_bands = len(forward.galaxy.bands)
    if flux.ndim != 2 or flux.shape[1] != n_bands or flux.shape != flux_err.shape:
        raise TrainingError(
            f"fluxes and errors of {n_bands} bands", f"shapes {flux.shape}, {flux_err.shape}", name
        )
    bad = ~np.all(np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0), axis=1)
    if bad.any():
        raise TrainingError(
            "finite fluxes and positive errors", f"{bad.sum()} galaxies without", name,
            "Leave out galaxies with missing bands, or bands that many galaxies miss.",
        )  # fmt: skip
    faint = ~forward.selection.passes(flux)
    if faint.any():
        raise TrainingError(
            "galaxies that pass the selection", f"{faint.sum()} of {len(flux)} that do not", name,
            "Select the galaxies by the same limits.",
        )  # fmt: skip
    if len(flux) < 500:
        raise TrainingError("at least 500 galaxies", str(len(flux)), name, "Select more of them.")


def _check_acceptance(forward: Forward, schedule: PopulationSchedule, name: str) -> None:
    _, weight = eqx.filter_jit(mock_photometry)(forward, schedule.seed, 4 * schedule.n_mock)
    share = float(jnp.mean(weight > 0.5))
    if share * schedule.n_mock < 16:
        raise TrainingError(
            f"at least 16 of {schedule.n_mock} mock galaxies to pass the selection",
            f"a share of {share:.5f}", name,
            "Start from a population of brighter galaxies, raise n_mock, or check units and limits.",
        )  # fmt: skip
    logger.info("%s: %.1f %% of the first mock galaxies pass the selection", name, 100 * share)
