"""Emission lines: luminosities from one network or table, added through any bandpass at lambda (1 + z)."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
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

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat names -> arrays, for safetensors; of each bandpass, only what lies between its ends."""
        packed = pack(np.asarray(self.transmission))
        luminosities = {name: np.asarray(value) for name, value in self.network.to_arrays("lines").items()}
        arrays = {f"line.{name}": np.asarray(getattr(self, name)) for name in _ARRAYS}
        return luminosities | arrays | {f"line.bandpass_{name}": value for name, value in packed.items()}

    @classmethod
    def from_arrays(cls, names: tuple[str, ...], arrays: dict[str, np.ndarray]) -> "LineEmulator":
        """Inverse of `to_arrays`; also reads bundles that hold bandpasses with all their zeros."""
        transmission = arrays.get("line.transmission")
        if transmission is None:
            transmission = unpack({name: arrays[f"line.bandpass_{name}"] for name in _PACKED})
        source = LineTable if "lines.table" in arrays else Network
        return cls(
            names,
            source.from_arrays("lines", arrays),
            transmission=jnp.asarray(transmission),
            **{name: jnp.asarray(arrays[f"line.{name}"]) for name in _ARRAYS},
        )


_ARRAYS = ("wave", "igm", "igm_redshift", "axis")
_PACKED = ("values", "first", "count", "n_nodes")


def pack(table: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table without the zeros before and after them.

    Args:
        table: (node, band).

    Returns:
        values: what is between the ends, one column after the other; first and count: (band,) nodes where
        a column begins and how many it has; n_nodes: (1,).
    """
    inside = [np.flatnonzero(column) for column in table.T]
    spans = [(int(i[0]), int(i[-1]) + 1) if len(i) else (0, 0) for i in inside]
    return {
        "values": np.concatenate([column[a:b] for column, (a, b) in zip(table.T, spans, strict=True)]),
        "first": np.array([a for a, _ in spans], np.int32),
        "count": np.array([b - a for a, b in spans], np.int32),
        "n_nodes": np.array([len(table)], np.int32),
    }


def unpack(packed: dict[str, np.ndarray]) -> np.ndarray:
    """Inverse of `pack`: (node, band)."""
    values, counts = packed["values"], packed["count"]
    table = np.zeros((int(packed["n_nodes"][0]), len(counts)), values.dtype)
    pieces = np.split(values, np.cumsum(counts)[:-1])
    for column, first, piece in zip(table.T, packed["first"], pieces, strict=True):
        column[first : first + len(piece)] = piece
    return table


def _uniform(value: Array, first: Array, step: Array, n_nodes: int) -> tuple[Array, Array]:
    position = (value - first) / step
    below = jnp.clip(jnp.floor(position), 0, n_nodes - 2).astype(jnp.int32)
    return below, jnp.clip(position - below, 0.0, 1.0)
