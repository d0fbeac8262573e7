"""Flux errors taken from a survey's own table, for surveys without a trained uncertainty model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.noise import AbstractUncertainty


class TabulatedUncertainty(AbstractUncertainty):
    """The errors of an observed galaxy of about the same flux in one band.

    All bands' errors come from the same galaxy, so that they stay correlated as they are.

    Args:
        bands: band names.
        flux: (galaxy, band) observed fluxes [nanomaggies].
        flux_err: (galaxy, band) their errors [nanomaggies].
        reference: band in which fluxes are matched.
        neighbours: errors come from one of so many galaxies on either side.

    Raises:
        ConfigurationError: the reference is no band, or a value is not finite or an error not positive.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    reference: int = eqx.field(static=True)
    neighbours: int = eqx.field(static=True)
    sorted_flux: Float[Array, " galaxy"]
    sorted_error: Float[Array, "galaxy band"]

    def __init__(self, bands: tuple[str, ...], flux, flux_err, reference: str, neighbours: int = 10):
        if reference not in bands:
            raise ConfigurationError(
                f"one of the bands {', '.join(bands)}", repr(reference), "uncertainty", "Correct `reference`."
            )
        if not np.all(np.isfinite(flux) & np.isfinite(flux_err) & (flux_err > 0)):
            raise ConfigurationError(
                "finite fluxes and positive errors", "others", "uncertainty", "Leave such galaxies out."
            )
        self.bands, self.reference, self.neighbours = tuple(bands), bands.index(reference), neighbours
        order = np.argsort(flux[:, self.reference], kind="stable")
        self.sorted_flux = jnp.asarray(flux[order, self.reference], jnp.float32)
        self.sorted_error = jnp.asarray(flux_err[order], jnp.float32)

    def sample(self, key: Array, flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """Errors (band,) [nanomaggies] for fluxes (band,) [nanomaggies]."""
        place = jnp.searchsorted(self.sorted_flux, flux[self.reference])
        offset = jax.random.randint(key, (), -self.neighbours, self.neighbours)
        return self.sorted_error[jnp.clip(place + offset, 0, self.sorted_flux.shape[0] - 1)]
