"""Emission lines: luminosities from one network or table, added through any bandpass at lambda (1 + z)."""

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from popcosmos_hpc.model.features import galaxy_features
from popcosmos_hpc.model.network import Network
from popcosmos_hpc.model.reference import LineTable
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.attenuation import diffuse_curve
from popcosmos_hpc.sps.cosmology import CosmologyTable
from popcosmos_hpc.sps.grid import LIGHT
from popcosmos_hpc.sps.spectrum import NANOMAGGIES

_LN10 = 2.302585


class LineEmulator(eqx.Module):
    """Dust-attenuated luminosities of emission lines, and their fluxes in bands.

    The network gives luminosities behind birth clouds; the diffuse screen is applied in closed
    form. The network knows nothing of redshifted bandpasses, so that steep filter edges, which
    spoil emulators of line-bearing magnitudes, stay exact (Leistedt et al. 2023 treat lines alike).

    Attributes:
        network: features to log10 luminosity [Lsun per Msun formed] without the diffuse screen, or a
            table of the luminosities.
        wave: (line,) rest-frame vacuum wavelengths [Angstrom].
        igm: (redshift, line) IGM transmission at `igm_redshift`, a uniform grid.
        transmission: (node, band) bandpasses over their integral, uniform in ln(wavelength).
        axis: (2,) first ln(wavelength) and step of `transmission`.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    network: Network | LineTable
    wave: Array
    igm: Array
    igm_redshift: Array
    transmission: Array
    axis: Array

    def luminosity(self, space: ParameterSpace, cosmology: CosmologyTable, theta: Array) -> Array:
        """Luminosities (line,) that leave the galaxy [Lsun per Msun formed]."""
        depth = theta[space.index("dust2")] * diffuse_curve(self.wave, theta[space.index("dust_index")])
        if isinstance(self.network, LineTable):
            return self.network(space, cosmology, theta) * jnp.exp(-depth)
        logarithm = self.network(galaxy_features(space, cosmology, theta))
        return jnp.exp(_LN10 * logarithm - depth)

    def flux(self, luminosity: Array, redshift: Array) -> Array:
        """Fluxes (band,) of redshifted lines at 10 pc [nanomaggies].

        Args:
            luminosity: (line,) [Lsun].
            redshift: of the galaxy.
        """
        observed = self.wave * (1 + redshift)
        below, fraction = _uniform(jnp.log(observed), self.axis[0], self.axis[1], self.transmission.shape[0])
        fraction = fraction[:, None]
        throughput = (1 - fraction) * self.transmission[below] + fraction * self.transmission[below + 1]
        step = self.igm_redshift[1] - self.igm_redshift[0]
        low, part = _uniform(redshift, self.igm_redshift[0], step, self.igm.shape[0])
        igm = (1 - part) * self.igm[low] + part * self.igm[low + 1]
        return NANOMAGGIES * ((luminosity * igm * observed / LIGHT) @ throughput)


def _uniform(value: Array, first: Array, step: Array, n_nodes: int) -> tuple[Array, Array]:
    position = (value - first) / step
    below = jnp.clip(jnp.floor(position), 0, n_nodes - 2).astype(jnp.int32)
    return below, jnp.clip(position - below, 0.0, 1.0)
