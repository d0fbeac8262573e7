"""From parameters to noiseless photometry: the interface, and its linear member."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from popcosmos_hpc.errors import BundleError

_EVERYWHERE = (float("-inf"), float("inf"))


class AbstractEmulator(eqx.Module):
    """Maps the physical parameters of one galaxy to its noiseless photometry.

    Attributes:
        bands: band names, in the order of the fluxes.
        redshift_range: (low, high) redshifts over which the emulator was trained.
        derived_names: names of the quantities `derived` returns.
        derived_units: their astropy-style units, "" if dimensionless.
    """

    bands: eqx.AbstractVar[tuple[str, ...]]
    redshift_range: eqx.AbstractVar[tuple[float, float]]
    derived_names: eqx.AbstractVar[tuple[str, ...]]
    derived_units: eqx.AbstractVar[tuple[str, ...]]

    @abstractmethod
    def __call__(self, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """Noiseless fluxes in nanomaggies, emission lines included."""

    @abstractmethod
    def sigma(self, redshift: Scalar) -> Float[Array, " band"]:
        """Fractional 1-sigma error of the emulator itself at a redshift."""

    @abstractmethod
    def select(self, bands: tuple[str, ...]) -> "AbstractEmulator":
        """The same emulator for some of its bands, in the order asked for.

        Raises:
            BundleError: a band is unknown.
        """

    @abstractmethod
    def derived(self, theta: Float[Array, " param"]) -> Float[Array, " derived"]:
        """Quantities that follow from the parameters, in `derived_units`."""


def band_indices(known: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Positions of bands among the known ones.

    Raises:
        BundleError: a band is unknown.
    """
    unknown = [band for band in wanted if band not in known]
    if unknown:
        raise BundleError(
            f"bands among {', '.join(known)}",
            ", ".join(unknown),
            "emulator",
            "Choose bands of this bundle, or train one that has them.",
        )
    return tuple(known.index(band) for band in wanted)


class LinearEmulator(AbstractEmulator):
    """Fluxes linear in the parameters: flux = matrix theta + offset.

    With a Gaussian prior and Gaussian noise its posterior is known exactly, which makes it the model
    of the toy world. It has no derived quantities.

    Args:
        matrix: (band, param) nanomaggies per unit of the parameter.
        offset: (band,) nanomaggies.
        bands: band names.
        fractional_sigma: (band,) fractional emulator error, the same at every redshift.
        redshift_range: redshifts for which the emulator may be used.
    """

    matrix: Float[Array, "band param"]
    offset: Float[Array, " band"]
    fractional_sigma: Float[Array, " band"]
    bands: tuple[str, ...] = eqx.field(static=True)
    redshift_range: tuple[float, float] = eqx.field(static=True)
    derived_names: tuple[str, ...] = eqx.field(static=True)
    derived_units: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, matrix, offset, bands, fractional_sigma=None, redshift_range=_EVERYWHERE):
        self.matrix = jnp.asarray(matrix, jnp.float32)
        self.offset = jnp.asarray(offset, jnp.float32)
        sigma = jnp.zeros_like(self.offset) if fractional_sigma is None else fractional_sigma
        self.fractional_sigma = jnp.asarray(sigma, jnp.float32)
        self.bands = tuple(bands)
        self.redshift_range = (float(redshift_range[0]), float(redshift_range[1]))
        self.derived_names = ()
        self.derived_units = ()

    def __call__(self, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """Fluxes in nanomaggies."""
        return self.matrix @ theta + self.offset

    def sigma(self, redshift: Scalar) -> Float[Array, " band"]:
        """Fractional error, independent of redshift."""
        return self.fractional_sigma

    def select(self, bands: tuple[str, ...]) -> "LinearEmulator":
        """The rows of some bands."""
        rows = jnp.asarray(band_indices(self.bands, tuple(bands)), jnp.int32)
        return LinearEmulator(
            self.matrix[rows], self.offset[rows], bands, self.fractional_sigma[rows], self.redshift_range
        )

    def derived(self, theta: Float[Array, " param"]) -> Float[Array, " derived"]:
        """Nothing: an empty array."""
        return jnp.zeros((0,), theta.dtype)
