"""One galaxy of a mock survey: from the population through photometry and noise to detection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.noise import AbstractUncertainty
from popcosmos_hpc.photometry import AB_ZERO_POINT, BandState


@dataclass(frozen=True)
class Condition:
    """What an observed galaxy must fulfil in one band to be in the catalog.

    Args:
        band: name of the band; it must be observed.
        brighter_than: faintest AB magnitude.
        fainter_than: brightest AB magnitude.
        min_snr: smallest ratio of flux to flux error.
    """

    band: str
    brighter_than: float | None = None
    fainter_than: float | None = None
    min_snr: float | None = None


class Selection(eqx.Module):
    """All of a set of conditions on the noisy photometry; none selects every galaxy.

    Args:
        bands: bands of the photometry.
        conditions: what is asked.

    Raises:
        ConfigurationError: a condition names an unknown band.
    """

    band: tuple[int, ...] = eqx.field(static=True)
    low: Float[Array, " condition"]
    high: Float[Array, " condition"]
    snr: Float[Array, " condition"]

    def __init__(self, bands: Sequence[str], conditions: Sequence[Condition]):
        self.band = band_indices(bands, [item.band for item in conditions], "selection")
        self.low = _limits([item.brighter_than for item in conditions], -np.inf)
        self.high = _limits([item.fainter_than for item in conditions], np.inf)
        snr = [-np.inf if item.min_snr is None else item.min_snr for item in conditions]
        self.snr = jnp.asarray(snr, jnp.float32)

    def __call__(self, flux: Float[Array, " band"], flux_err: Float[Array, " band"], state) -> Array:
        """Whether a galaxy is in the catalog, a bool.

        Args:
            flux: noisy fluxes [nanomaggies].
            flux_err: their 1-sigma errors [nanomaggies].
            state: (band,) `BandState`.
        """
        selected = jnp.ones((), bool)
        for index, band in enumerate(self.band):
            selected &= (flux[band] > self.low[index]) & (flux[band] < self.high[index])
            selected &= flux[band] >= self.snr[index] * flux_err[band]
            selected &= state[band] == BandState.OBSERVED
        return selected


def _limits(magnitudes: list[float | None], default: float) -> Array:
    fluxes = [default if item is None else 10 ** (0.4 * (AB_ZERO_POINT - item)) for item in magnitudes]
    return jnp.asarray(fluxes, jnp.float32)


def band_indices(bands: Sequence[str], wanted: Sequence[str], where: str) -> tuple[int, ...]:
    """Positions of bands in the photometry.

    Raises:
        ConfigurationError: a band is unknown.
    """
    if strange := sorted(set(wanted) - set(bands)):
        raise ConfigurationError(
            f"bands among {', '.join(bands)}", ", ".join(strange), where, "Correct the names of the bands."
        )
    return tuple(bands.index(band) for band in wanted)


class Coverage(eqx.Module):
    """Groups of bands that part of the galaxies lack, each group as a whole.

    Args:
        bands: bands of the photometry.
        groups: for each group its bands and the share of the galaxies that lack them.

    Raises:
        ConfigurationError: a group names an unknown band.
    """

    lacking: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    fraction: Float[Array, " group"]

    def __init__(self, bands: Sequence[str], groups: Sequence[tuple[Sequence[str], float]] = ()):
        self.lacking = tuple(band_indices(bands, names, "coverage") for names, _ in groups)
        self.fraction = jnp.asarray([share for _, share in groups], jnp.float32)

    def sample(self, key: Array, n_bands: int):
        """A draw of the states (band,) int8, OBSERVED or MISSING."""
        outside = jax.random.uniform(key, self.fraction.shape) < self.fraction
        state = jnp.full(n_bands, BandState.OBSERVED.value, jnp.int8)
        for group, index in enumerate(self.lacking):
            missing = jnp.where(outside[group], BandState.MISSING.value, state[jnp.asarray(index)])
            state = state.at[jnp.asarray(index)].set(missing.astype(jnp.int8))
        return state


class Candidate(NamedTuple):
    """A galaxy of the population as the survey would record it.

    Attributes:
        theta: (param,) physical parameters.
        true_flux: (band,) noiseless fluxes, zero points included [nanomaggies].
        flux: (band,) noisy fluxes [nanomaggies].
        flux_err: (band,) stated 1-sigma errors [nanomaggies].
        state: (band,) int8 `BandState`.
        selected: bool; the galaxy is in the catalog.
    """

    theta: Any
    true_flux: Any
    flux: Any
    flux_err: Any
    state: Any
    selected: Any


class MockModel(eqx.Module):
    """A population seen by a survey.

    Args:
        galaxy: prior, emulator and noise; galaxies follow the prior, cut at the emulator's redshifts.
        uncertainty: how large the errors are, given the noiseless fluxes.
        selection: what is detected, judged on the noisy fluxes.
        coverage: what is not observed.

    Raises:
        ConfigurationError: errors and galaxies have other bands, or another order of them.
    """

    galaxy: GalaxyModel
    uncertainty: AbstractUncertainty
    selection: Selection
    coverage: Coverage

    def __check_init__(self):
        if tuple(self.uncertainty.bands) != tuple(self.galaxy.bands):
            raise ConfigurationError(
                f"flux errors of the bands {', '.join(self.galaxy.bands)}, in this order",
                ", ".join(self.uncertainty.bands),
                "uncertainty",
                "Put them in this order with `select`.",
            )

    def candidate(self, key: Array) -> Candidate:
        """Draw a galaxy, observe it and judge whether it is detected."""
        base, error, noise, covered = jax.random.split(key, 4)
        theta = self.galaxy.theta(self.galaxy.prior.sample_base(base))
        redshift = self.galaxy.redshift(theta)
        model_flux, sigma = self.galaxy.emulator(theta), self.galaxy.emulator.sigma(redshift)
        true_flux = self.galaxy.likelihood.moments(model_flux, sigma)[0]
        flux_err = self.uncertainty.sample(error, true_flux)
        state = self.coverage.sample(covered, len(self.galaxy.bands))
        flux, state = self.galaxy.likelihood.simulate(noise, model_flux, sigma, flux_err, state)
        selected = self.selection(flux, flux_err, state) & self._usable(redshift, flux, flux_err)
        return Candidate(theta, true_flux, flux, flux_err, state, selected)

    def _usable(self, redshift: Scalar, flux, flux_err):
        low, high = self.galaxy.emulator.redshift_range
        finite = jnp.all(jnp.isfinite(flux)) & jnp.all(jnp.isfinite(flux_err) & (flux_err > 0.0))
        return finite & (redshift >= low) & (redshift <= high)
