"""Reference photometry: the linear part of the synthesis, tabulated, for networks to correct.

A composite spectrum is linear in the masses of its populations, and redshift, bandpass and
intergalactic medium act on each population alike. So the flux of every population through every
band is a table over redshift and metallicity, exact where the Lyman limit or a break crosses the
edge of a band, which networks round off. Emission by dust has one spectrum, whose features cross
bands, too; its strength is the light that dust absorbs, reckoned at a few wavelengths. What the
tables lack is smooth: the course of the dust curve within a part of a band, and the nebula's
dependence on stellar metallicity.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.attenuation import birth_cloud_curve, diffuse_curve
from popcosmos_hpc.sps.cosmology import CosmologyTable, age_at
from popcosmos_hpc.sps.star_formation import bin_edges, bin_masses

FAINT = 20.0  # mag per Msun; fainter continua are not learned but floored here


class Node(NamedTuple):
    """Two neighbours on an axis: index of the lower one and weight of the upper one."""

    below: Array
    fraction: Array


class ReferencePhotometry(eqx.Module):
    """Continuum photometry of one galaxy from tables of its populations.

    The populations are the stars in birth clouds, the rest of the first bin, and the other bins of
    the history. Fluxes are at 10 pc, through band and intergalactic medium [nanomaggies].

    Attributes:
        stars: (redshift, metal, population, part, band) per solar mass formed.
        nebula: (redshift, gas metal, ionisation, part, band) per ionising photon of young stars.
        torus: (redshift, depth, part, band) per solar luminosity of the AGN; no depths without AGN.
        dust: (redshift, part, band) per solar luminosity that dust absorbs.
        heat: (coarse redshift, metal, population, bin) light in bins of rest-frame wavelength [Lsun per
            Msun]; no bins where emission by dust is left to the networks.
        nebula_heat: (gas metal, ionisation, bin) the same per ionising photon, lines included.
        heat_wave: (bin,) wavelengths at which the bins are absorbed [Angstrom].
        bolometric: (redshift, metal, population) luminosity [Lsun per Msun].
        photons: (metal,) ionising photons of young stars, in the unit of `nebula`, per Msun.
        wave: (redshift, part, band) observed effective wavelength of each part of a band [Angstrom].
        log1pz: (2,) first ln(1 + redshift) and step.
        metals: (metal,), `gas_metals`, `log_u`, `log_tau`: the other axes.
        cloud_age: (1,) age at which stars leave birth clouds [Gyr].
    """

    stars: Array
    nebula: Array
    torus: Array
    dust: Array
    heat: Array
    nebula_heat: Array
    heat_wave: Array
    bolometric: Array
    photons: Array
    wave: Array
    log1pz: Array
    metals: Array
    gas_metals: Array
    log_u: Array
    log_tau: Array
    cloud_age: Array

    def __call__(self, space: ParameterSpace, cosmology: CosmologyTable, theta: Array) -> Array:
        """AB magnitudes (band,) for N = 0, without strong lines, floored softly at `FAINT`."""
        value = dict(zip(space.names, theta, strict=True))
        log1pz = jnp.log1p(value["redshift"])
        z = self._redshift_node(log1pz, len(self.wave))
        metal = node(value["log10Z"], self.metals)
        gas = node(value["gaslog10Z"], self.gas_metals), node(value["gaslog10U"], self.log_u)
        mass = self._masses(space, cosmology, value)
        stars = mass[:, None, None] * mix(self.stars, z, metal)
        young = stars[0] + mass[0] * mix(self.photons, metal) * mix(self.nebula, z, *gas)
        wave = mix(self.wave, z) * jnp.exp(-log1pz)
        diffuse = value["dust2"] * diffuse_curve(wave, value["dust_index"])
        cloud = value["dust2"] * value["dust1_fraction"] * birth_cloud_curve(wave)
        flux = young * jnp.exp(-cloud) + jnp.sum(stars[1:], axis=0)
        if self.torus.shape[1]:
            luminosity = jnp.exp(value["lnfagn"]) * jnp.sum(mass * mix(self.bolometric, z, metal))
            flux += luminosity * mix(self.torus, z, node(value["lnagntau"], self.log_tau))
        if len(self.heat_wave):
            light = mass[:, None] * mix(self.heat, self._redshift_node(log1pz, len(self.heat)), metal)
            nebula = mass[0] * mix(self.photons, metal) * mix(self.nebula_heat, *gas)
            flux += self._absorbed(value, light.at[0].add(nebula)) * mix(self.dust, z)
        total = jnp.sum(flux * jnp.exp(-diffuse), axis=0)
        return -2.5 * jnp.log10(total * 10**-9.0 + 10 ** (-0.4 * FAINT))

    def _redshift_node(self, log1pz: Array, n_nodes: int) -> Node:
        """Neighbours on an axis of `n_nodes` over the range of the tables."""
        position = (log1pz - self.log1pz[0]) / self.log1pz[1] * ((n_nodes - 1) / (len(self.wave) - 1))
        below = jnp.clip(jnp.floor(position), 0, n_nodes - 2).astype(jnp.int32)
        return Node(below, jnp.clip(position - below, 0.0, 1.0))

    def _absorbed(self, value: dict[str, Array], light: Array) -> Array:
        """What dust absorbs of light (population, bin) [Lsun per Msun formed]."""
        diffuse = value["dust2"] * diffuse_curve(self.heat_wave, value["dust_index"])
        cloud = value["dust2"] * value["dust1_fraction"] * birth_cloud_curve(self.heat_wave)
        behind_clouds = -jnp.expm1(-cloud - diffuse)
        return jnp.sum(light[0] * behind_clouds - jnp.sum(light[1:], axis=0) * jnp.expm1(-diffuse))

    def _masses(self, space: ParameterSpace, cosmology: CosmologyTable, value: dict[str, Array]) -> Array:
        """Mass fractions (population,)."""
        masses, edges = history(space, cosmology, value)
        share = self.cloud_age[0] / edges[1]
        return jnp.concatenate([jnp.stack([share, 1 - share]) * masses[0], masses[1:]])

    def to_arrays(self) -> dict[str, Array]:
        """Flat names -> arrays, for safetensors."""
        return {f"reference.{name}": getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "ReferencePhotometry | None":
        """Inverse of `to_arrays`; None where a bundle has no reference."""
        if "reference.stars" not in arrays:
            return None
        none = {f"reference.{name}": np.zeros(0, np.float32) for name in _DUST}
        return cls(**{name: jnp.asarray((none | arrays)[f"reference.{name}"]) for name in _ARRAYS})


_DUST = ("dust", "heat", "nebula_heat", "heat_wave")  # missing from the first bundles
_ARRAYS = (
    "stars", "nebula", "torus", *_DUST, "bolometric", "photons", "wave", "log1pz", "metals", "gas_metals",
    "log_u", "log_tau", "cloud_age",
)  # fmt: skip


class LineTable(eqx.Module):
    """Luminosities of lines behind birth clouds: exact, since only the first bin of the history ionises.

    Attributes:
        table: (metal, gas metal, ionisation, line, 2) luminosity of the lines around stars within and
            beyond birth clouds [Lsun per Msun formed in the first bin].
        wave: (line,) rest-frame wavelengths [Angstrom].
        metals: (metal,), `gas_metals`, `log_u`: the axes.
    """

    table: Array
    wave: Array
    metals: Array
    gas_metals: Array
    log_u: Array

    def __call__(self, space: ParameterSpace, cosmology: CosmologyTable, theta: Array) -> Array:
        """Luminosities (line,) without the diffuse screen [Lsun per Msun formed]."""
        value = dict(zip(space.names, theta, strict=True))
        metal, gas = node(value["log10Z"], self.metals), node(value["gaslog10Z"], self.gas_metals)
        lines = mix(self.table, metal, gas, node(value["gaslog10U"], self.log_u))
        cloud = value["dust2"] * value["dust1_fraction"] * birth_cloud_curve(self.wave)
        mass = history(space, cosmology, value)[0][0]
        return mass * (lines[:, 0] * jnp.exp(-cloud) + lines[:, 1])

    def to_arrays(self, prefix: str) -> dict[str, Array]:
        """Flat names -> arrays, for safetensors."""
        return {f"{prefix}.{name}": getattr(self, name) for name in _LINE_ARRAYS}

    @classmethod
    def from_arrays(cls, prefix: str, arrays: dict[str, np.ndarray]) -> "LineTable":
        """Inverse of `to_arrays`."""
        return cls(**{name: jnp.asarray(arrays[f"{prefix}.{name}"]) for name in _LINE_ARRAYS})


_LINE_ARRAYS = ("table", "wave", "metals", "gas_metals", "log_u")


def history(space: ParameterSpace, cosmology: CosmologyTable, value: dict[str, Array]) -> tuple[Array, Array]:
    """Mass fractions (bin,) of the history and its edges (bin + 1,) [Gyr]."""
    ratios = jnp.stack([value[name] for name in space.names if name.startswith("logsfr_ratio")])
    edges = bin_edges(age_at(cosmology, value["redshift"]), len(ratios) + 1)
    return bin_masses(ratios, edges), edges


def node(value: Array, nodes: Array) -> Node:
    """Neighbours of a value on increasing nodes; the ends beyond them."""
    below = jnp.clip(jnp.searchsorted(nodes, value, side="right") - 1, 0, len(nodes) - 2)
    fraction = (value - nodes[below]) / (nodes[below + 1] - nodes[below])
    return Node(below.astype(jnp.int32), jnp.clip(fraction, 0.0, 1.0))


def mix(table: Array, *nodes: Node) -> Array:
    """Multilinear interpolation over the leading axes of a table.

    One slice holds all corners: a gather per corner is six times slower on a CPU.
    """
    n, inner = len(nodes), table.shape[len(nodes) :]
    start = (*(below for below, _ in nodes), *(jnp.int32(0),) * len(inner))
    corners = lax.dynamic_slice(table, start, (2,) * n + inner).reshape(2**n, -1)
    weights = jnp.ones(1)
    for _, fraction in nodes:
        weights = jnp.outer(weights, jnp.stack([1 - fraction, fraction])).ravel()
    return (weights @ corners).reshape(inner)
