"""A galaxy world with exact answers: linear fluxes, Gaussian prior, Gaussian noise.

Used by tests of the model, the samplers, the campaign and the system.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from popcosmos_hpc.model.bundle import save_bundle
from popcosmos_hpc.model.emulator import LinearEmulator
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import GaussianPrior
from popcosmos_hpc.parameters import Parameter, ParameterSpace
from popcosmos_hpc.photometry import BandState, Photometry

BANDS = ("u", "g", "r", "i", "z", "y")
SPACE = ParameterSpace(
    (
        Parameter("N", "mag", "apparent size of the toy galaxy", "identity"),
        Parameter("age", "", "toy colour", "identity"),
        Parameter("dust", "", "toy colour", "identity"),
        Parameter("metals", "", "toy colour", "identity"),
        Parameter("redshift", "", "toy redshift", "identity"),
    )
)
ZERO_POINTS = np.array([1.02, 0.98, 1.0, 1.0, 1.05, 0.97])
ERRORS = np.array([0.5, 0.3, 0.3, 0.3, 0.4, 0.6])


def arrays() -> dict[str, np.ndarray]:
    """Weights of the toy world: `matrix`, `offset`, `mean`, `cholesky`."""
    random = np.random.default_rng(20)
    matrix = random.normal(size=(len(BANDS), SPACE.size))
    root = np.tril(0.3 * random.normal(size=(SPACE.size, SPACE.size)))
    np.fill_diagonal(root, [1.0, 0.8, 1.2, 0.9, 0.25])
    root[-1, :-1] *= 0.2
    return {
        "matrix": matrix.astype(np.float32),
        "offset": np.full(len(BANDS), 10.0, np.float32),
        "mean": np.array([0.5, -0.2, 0.0, 0.3, 1.5], np.float32),
        "cholesky": root.astype(np.float32),
    }


def toy_model(family: str = "gaussian", error_floor: float = 0.0, zero_points=ZERO_POINTS) -> GalaxyModel:
    """The toy world as a galaxy model; its answers are exact for Gaussian noise without a floor."""
    weights = arrays()
    return GalaxyModel(
        LinearEmulator(weights["matrix"], weights["offset"], BANDS, redshift_range=(-5.0, 10.0)),
        Likelihood(zero_points, error_floor, family),
        GaussianPrior(SPACE, weights["mean"], weights["cholesky"]),
    )


class Exact(NamedTuple):
    """Exact posterior of one galaxy: mean (param,), covariance (param, param), ln evidence."""

    mean: np.ndarray
    covariance: np.ndarray
    log_evidence: float


def exact(photometry: Photometry) -> Exact:
    """Exact answer for one galaxy of the Gaussian toy world; missing bands drop out, no limits."""
    weights = {name: value.astype(np.float64) for name, value in arrays().items()}
    observed = np.asarray(photometry.state) == BandState.OBSERVED
    design = (ZERO_POINTS[:, None] * weights["matrix"])[observed]
    data = (np.asarray(photometry.flux, np.float64) - ZERO_POINTS * weights["offset"])[observed]
    variance = np.asarray(photometry.flux_err, np.float64)[observed] ** 2
    if np.isfinite(photometry.redshift):
        width = max(float(photometry.redshift_err), 1e-3 * (1 + float(photometry.redshift)))
        row = np.eye(SPACE.size)[SPACE.index("redshift")]
        design, data = np.vstack([design, row]), np.append(data, float(photometry.redshift))
        variance = np.append(variance, width**2)
    prior = weights["cholesky"] @ weights["cholesky"].T
    total = design @ prior @ design.T + np.diag(variance)
    residual = data - design @ weights["mean"]
    gain = np.linalg.solve(total, design @ prior).T
    _sign, log_determinant = np.linalg.slogdet(2 * np.pi * total)
    log_evidence = -0.5 * residual @ np.linalg.solve(total, residual) - 0.5 * log_determinant
    return Exact(weights["mean"] + gain @ residual, prior - gain @ design @ prior, float(log_evidence))


def toy_photometry(n_galaxies: int, seed: int = 0, missing: float = 0.0) -> tuple[np.ndarray, Photometry]:
    """Galaxies of the toy world with Gaussian noise.

    Args:
        n_galaxies: how many.
        seed: of the random numbers.
        missing: probability that a band is missing (the first never is).

    Returns:
        theta (galaxy, param) and `Photometry` of float32 NumPy arrays.
    """
    random = np.random.default_rng(seed)
    weights = arrays()
    normal = random.normal(size=(n_galaxies, SPACE.size))
    theta = weights["mean"] + normal @ weights["cholesky"].T
    flux = ZERO_POINTS * (theta @ weights["matrix"].T + weights["offset"])
    flux = flux + ERRORS * random.normal(size=flux.shape)
    state = np.where(random.random(flux.shape) < missing, BandState.MISSING, BandState.OBSERVED)
    state[:, 0] = BandState.OBSERVED
    flux = np.where(state == BandState.MISSING, np.nan, flux)
    unknown = np.full(n_galaxies, np.nan, np.float32)
    errors = np.broadcast_to(ERRORS, flux.shape).astype(np.float32)
    return theta, Photometry(flux.astype(np.float32), errors, state.astype(np.int8), unknown, unknown)


def write_toy_bundle(folder: Path) -> Path:
    """Write the toy world as a model bundle, so that a whole campaign runs on it by configuration."""
    manifest = {
        "name": "toy",
        "description": "linear-Gaussian world with exact posteriors",
        "emulator": "linear",
        "bands": list(BANDS),
        "space": SPACE.to_list(),
        "redshift_range": [-5.0, 10.0],
    }
    weights = arrays()
    named = {f"linear.{name}": weights[name] for name in ("matrix", "offset")}
    named.update({f"prior.{name}": weights[name] for name in ("mean", "cholesky")})
    return save_bundle(folder, manifest, named)
