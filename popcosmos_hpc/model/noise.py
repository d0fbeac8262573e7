"""How large the errors of a survey's fluxes are: the interface, and constant depths."""

from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popcosmos_hpc.errors import ConfigurationError


class AbstractUncertainty(eqx.Module):
    """Distribution of the flux errors that a survey states for a galaxy of given fluxes.

    Attributes:
        bands: band names, in the order of the fluxes.
    """

    bands: eqx.AbstractVar[tuple[str, ...]]

    @abstractmethod
    def sample(self, key: Array, flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """A draw of the 1-sigma errors (band,) [nanomaggies] at noiseless fluxes (band,) [nanomaggies]."""


class ConstantUncertainty(AbstractUncertainty):
    """The same error for every galaxy: a survey of uniform depth, limited by the sky.

    Args:
        bands: band names.
        flux_err: (band,) 1-sigma errors [nanomaggies].

    Raises:
        ConfigurationError: an error is not positive, or there is not one per band.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    flux_err: Float[Array, " band"]

    def __init__(self, bands: Sequence[str], flux_err):
        errors = np.asarray(flux_err, np.float32)
        if errors.shape != (len(bands),) or not np.all(np.isfinite(errors) & (errors > 0)):
            raise ConfigurationError(
                f"a positive error for each of the bands {', '.join(bands)}",
                str(errors.tolist()),
                "flux errors",
            )
        self.bands, self.flux_err = tuple(bands), jnp.asarray(errors)

    def sample(self, key: Array, flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """The errors themselves; neither key nor fluxes matter."""
        return self.flux_err
