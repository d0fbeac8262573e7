"""The 16-parameter stellar-population synthesis: parameters to spectra and photometry.

Follows pop-cosmos (Alsing et al. 2024; Thorp et al. 2025): seven-bin history, free gas metallicity
and ionisation, birth clouds and diffuse dust, dust emission in energy balance, a torus AGN, and the
intergalactic medium. All sums over ages, metallicities and wavelengths are matrix products.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.attenuation import birth_cloud_curve, diffuse_curve
from popcosmos_hpc.sps.cosmology import CosmologyTable, age_at, cosmology_table
from popcosmos_hpc.sps.filters import Filter
from popcosmos_hpc.sps.grid import AGE_EDGES, LIGHT, LSUN, LYMAN_LIMIT, N_NEBULAR, N_YOUNG, GridSet
from popcosmos_hpc.sps.igm import transmission_table
from popcosmos_hpc.sps.star_formation import age_weights, bin_edges, bin_masses

# nanomaggies of a source of 1 Lsun/Hz at 10 pc: Lsun / (4 pi (10 pc)^2) / 3.631e-29 erg/s/cm2/Hz
TEN_PARSEC = 3.0856775814913673e19  # cm
NANOMAGGIES = LSUN / (4 * np.pi * TEN_PARSEC**2) / 3.631e-29


class Populations(NamedTuple):
    """Weights that describe one galaxy's stars, per solar mass formed.

    Attributes:
        stars: (metal, age) mass in each cell of the stellar grid, sums to 1.
        photons: (age,) ionising photons of the nebular ages [1/s].
        surviving: mass left over mass formed.
    """

    stars: Array
    photons: Array
    surviving: Array


class SPS(eqx.Module):
    """Stellar-population synthesis for one galaxy at a time.

    Attributes:
        space: the parameters; theta follows its order.
        cosmology: ages of the universe.
        wave: (wave,) rest frame [Angstrom].
    """

    space: ParameterSpace = eqx.field(static=True)
    agn: bool = eqx.field(static=True)
    cosmology: CosmologyTable
    wave: Array
    pixel: Array
    metals: Array
    stars: Array
    ionising: Array
    bolometric: Array
    surviving: Array
    gas_metals: Array
    gas_log_u: Array
    continuum: Array
    lines: Array
    line_wave: Array
    line_names: tuple[str, ...] = eqx.field(static=True)
    dust: Array
    torus_log_tau: Array
    torus: Array
    igm_redshift: Array
    igm: Array

    def weights(self, theta: Array) -> Populations:
        """Populations of parameters theta (param,)."""
        get = lambda name: theta[self.space.index(name)]  # noqa: E731
        ratios = jnp.stack([get(name) for name in self.space.names if name.startswith("logsfr_ratio")])
        edges = bin_edges(age_at(self.cosmology, get("redshift")), len(ratios) + 1)
        ages = age_weights(bin_masses(ratios, edges), edges, jnp.asarray(AGE_EDGES / 1e9, jnp.float32))
        metal = hat_weights(get("log10Z"), self.metals)
        stars = metal[:, None] * ages[None, :]
        photons = jnp.sum(stars[:, :N_NEBULAR] * self.ionising[:, :N_NEBULAR], axis=0)
        return Populations(stars, photons, jnp.sum(stars * self.surviving))

    def _nebular_cells(self, theta: Array, photons: Array) -> Array:
        gas = hat_weights(theta[self.space.index("gaslog10Z")], self.gas_metals)
        log_u = hat_weights(theta[self.space.index("gaslog10U")], self.gas_log_u)
        return gas[:, None, None] * log_u[None, :, None] * photons[None, None, :]

    def _depths(self, theta: Array, wave: Array) -> tuple[Array, Array]:
        tau = theta[self.space.index("dust2")]
        diffuse = tau * diffuse_curve(wave, theta[self.space.index("dust_index")])
        cloud = tau * theta[self.space.index("dust1_fraction")] * birth_cloud_curve(wave)
        return diffuse, cloud

    def _lines(self, cells: Array) -> tuple[Array, Array]:
        """Line luminosities (line,) around stars in birth clouds and around older ones, before dust."""
        young = jnp.tensordot(cells[..., :N_YOUNG], self.lines[:, :, :N_YOUNG], 3)
        return young, jnp.tensordot(cells[..., N_YOUNG:], self.lines[:, :, N_YOUNG:], 3)

    def lines_behind_clouds(self, theta: Array) -> Array:
        """Line luminosities (line,) [Lsun per Msun formed], dimmed by birth clouds only."""
        young, old = self._lines(self._nebular_cells(theta, self.weights(theta).photons))
        return young * jnp.exp(-self._depths(theta, self.line_wave)[1]) + old

    def line_luminosities(self, theta: Array) -> Array:
        """Dust-attenuated line luminosities (line,) [Lsun per Msun formed]."""
        return self.lines_behind_clouds(theta) * jnp.exp(-self._depths(theta, self.line_wave)[0])

    def luminosity(self, theta: Array) -> Array:
        """Continuum L_lambda (wave,) [Lsun/Angstrom per Msun formed] that leaves the galaxy.

        Stars, nebular continuum, dust emission and AGN; no emission lines, no IGM.
        """
        weights = self.weights(theta)
        cells = self._nebular_cells(theta, weights.photons)
        flat = lambda part: part.reshape(-1, part.shape[-1])  # noqa: E731
        young = weights.stars[:, :N_YOUNG].ravel() @ flat(self.stars[:, :N_YOUNG])
        young += cells[..., :N_YOUNG].ravel() @ flat(self.continuum[:, :, :N_YOUNG])
        old = weights.stars[:, N_YOUNG:].ravel() @ flat(self.stars[:, N_YOUNG:])
        old += cells[..., N_YOUNG:].ravel() @ flat(self.continuum[:, :, N_YOUNG:])
        diffuse, cloud = self._depths(theta, self.wave)
        screen = jnp.exp(-diffuse)
        emergent = (young * jnp.exp(-cloud) + old) * screen
        # Photons of stars below the Lyman limit were removed on loading; only the rest heats dust,
        # together with the absorbed part of the lines.
        absorbed = jnp.sum((young + old - emergent) * self.pixel) + self._absorbed_lines(theta, cells)
        heated = absorbed * self.dust
        absorbed_again = jnp.sum(heated * (1 - screen) * self.pixel)
        emergent += heated * screen + absorbed_again * self.dust
        return emergent + self._torus(theta, weights, screen)

    def _absorbed_lines(self, theta: Array, cells: Array) -> Array:
        diffuse, cloud = self._depths(theta, self.line_wave)
        young, old = self._lines(cells)
        return jnp.sum(young * (1 - jnp.exp(-cloud - diffuse)) + old * (1 - jnp.exp(-diffuse)))

    def _torus(self, theta: Array, weights: Populations, screen: Array) -> Array:
        if not self.agn:
            return jnp.zeros_like(self.wave)
        strength = jnp.exp(theta[self.space.index("lnfagn")])
        shape = hat_weights(theta[self.space.index("lnagntau")], self.torus_log_tau) @ self.torus
        return strength * jnp.sum(weights.stars * self.bolometric) * shape * screen

    def transmission(self, redshift: Array) -> Array:
        """IGM transmission at the rest wavelengths (wave,)."""
        return hat_weights(redshift, self.igm_redshift) @ self.igm


def hat_weights(value: Array, nodes: Array) -> Array:
    """Weights (node,) of linear interpolation on increasing nodes; constant beyond the ends."""
    value = jnp.clip(value, nodes[0], nodes[-1])
    upper = jnp.clip(jnp.searchsorted(nodes, value, side="right"), 1, len(nodes) - 1)
    fraction = (value - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1])
    index = jnp.arange(len(nodes))
    return jnp.where(index == upper, fraction, 0.0) + jnp.where(index == upper - 1, 1 - fraction, 0.0)


def build_sps(grids: GridSet, space: ParameterSpace, agn: bool = True, redshift_max: float = 6.0) -> SPS:
    """Assemble the synthesis from grids.

    Args:
        grids: what a loader returned.
        space: the parameters.
        agn: whether the AGN torus takes part.
        redshift_max: end of the IGM table.

    Raises:
        ConfigurationError: an AGN is asked for and no torus templates were given.
    """
    if agn and len(grids.torus_log_tau) == 0:
        raise ConfigurationError(
            "a file of AGN torus templates",
            "none",
            "SPS grids",
            "Give Nenkova08_y010_torusg_n10_q2.0.dat of an FSPS tree, set SPS_HOME, or set agn: false.",
        )
    wave = grids.ssp.wave
    step = np.log(wave[1] / wave[0])
    redshifts = np.linspace(0.0, redshift_max, 241)
    f4 = lambda values: jnp.asarray(np.asarray(values), jnp.float32)  # noqa: E731
    # Per 1e45 photons, so that float32 holds luminosities per photon.
    unit = 1e45
    return SPS(
        space,
        agn,
        cosmology_table(),
        f4(wave),
        f4(wave * step),
        f4(grids.ssp.log10_metallicity),
        f4(grids.ssp.luminosity),
        f4(grids.ssp.ionising / unit),
        f4(grids.ssp.bolometric),
        f4(grids.ssp.surviving),
        f4(grids.nebular.log10_metallicity),
        f4(grids.nebular.log10_ionisation),
        f4(grids.nebular.continuum * unit),
        f4(grids.nebular.lines * unit),
        f4(grids.nebular.line_wave),
        grids.nebular.line_names,
        f4(grids.dust),
        f4(grids.torus_log_tau),
        f4(grids.torus),
        f4(redshifts),
        f4(transmission_table(wave, redshifts)),
    )


class Photometer(eqx.Module):
    """Integrates spectra over filters on the observed axis of a synthesis.

    Attributes:
        matrix: (wave_observed, band) filter weights, columns sum to 1.
        offset: position of the first observed pixel relative to the first rest pixel.
        line_table: (node, band) transmission / integral of T dln(wave), uniform in ln(wave).
        line_axis: (2,) first ln(wave) and step of the table.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    first: int = eqx.field(static=True)
    step: float = eqx.field(static=True)
    matrix: Array
    line_table: Array
    line_axis: Array

    def continuum(self, sps: SPS, luminosity: Array, redshift: Array) -> Array:
        """Fluxes (band,) at 10 pc of L_lambda (wave,) [Lsun/Angstrom] redshifted [nanomaggies]."""
        shift = jnp.log1p(redshift) / self.step
        whole = jnp.floor(shift)
        fraction = shift - whole
        length = self.matrix.shape[0]
        per_frequency = luminosity * sps.wave**2 / LIGHT * (1 + redshift)
        padded = jnp.concatenate([jnp.zeros(1), per_frequency])
        start = jnp.clip(self.first - whole.astype(int), 0, len(padded) - length - 1)
        piece = lax.dynamic_slice(padded, (start,), (length + 1,))
        observed = (1 - fraction) * piece[1:] + fraction * piece[:-1]
        return NANOMAGGIES * (observed @ self.matrix)

    def lines(self, line_wave: Array, luminosity: Array, redshift: Array) -> Array:
        """Fluxes (band,) at 10 pc of lines (line,) [Lsun] redshifted [nanomaggies]."""
        observed = line_wave * (1 + redshift)
        position = (jnp.log(observed) - self.line_axis[0]) / self.line_axis[1]
        below = jnp.clip(jnp.floor(position), 0, self.line_table.shape[0] - 2).astype(int)
        fraction = jnp.clip(position - below, 0.0, 1.0)[:, None]
        transmission = (1 - fraction) * self.line_table[below] + fraction * self.line_table[below + 1]
        return NANOMAGGIES * ((luminosity * observed / LIGHT) @ transmission)


def build_photometer(sps: SPS, filters: list[Filter], redshift_max: float) -> Photometer:
    """Resample filters onto the axis of a synthesis.

    Raises:
        ConfigurationError: the axis does not cover a filter at all redshifts up to `redshift_max`.
    """
    wave = np.asarray(sps.wave, float)
    step = float(np.log(wave[-1] / wave[0]) / (len(wave) - 1))
    low, high = min(f.wave[0] for f in filters), max(f.wave[-1] for f in filters)
    if high > wave[-1] or low / (1 + redshift_max) < wave[0]:
        raise ConfigurationError(
            f"a wavelength grid of {low / (1 + redshift_max):.0f}-{high:.0f} Angstrom",
            f"{wave[0]:.0f}-{wave[-1]:.0f}",
            "photometer",
            "Widen wavelength_range.",
        )
    first = max(int(np.log(low / wave[0]) / step) - 1, 0)
    last = min(int(np.log(high / wave[0]) / step) + 2, len(wave))
    fine = np.arange(first * 16, last * 16)
    ln_fine = np.log(wave[0]) + (fine / 16 - 0.5 + 0.5 / 16) * step
    columns, tables = [], []
    for f in filters:
        curve = np.interp(np.exp(ln_fine), f.wave, f.transmission, left=0.0, right=0.0)
        pixels = curve.reshape(-1, 16).mean(1)
        columns.append(pixels / pixels.sum())
        tables.append(curve / (curve.sum() * step / 16))
    axis = jnp.asarray([ln_fine[0], step / 16], jnp.float32)
    return Photometer(
        tuple(f.name for f in filters),
        first,
        step,
        jnp.asarray(np.array(columns).T, jnp.float32),
        jnp.asarray(np.array(tables).T, jnp.float32),
        axis,
    )


def photometry(sps: SPS, photometer: Photometer, theta: Array, lines: Array | None = None) -> Array:
    """Observed fluxes (band,) for N = 0 [nanomaggies]: apparent magnitudes are these plus N.

    Args:
        sps: the synthesis.
        photometer: the filters.
        theta: (param,) parameters.
        lines: (line,) factors on the line luminosities; None keeps all lines.
    """
    redshift = theta[sps.space.index("redshift")]
    continuum = sps.luminosity(theta) * sps.transmission(redshift)
    luminosity = sps.line_luminosities(theta) * line_transmission(sps, redshift)
    luminosity = luminosity if lines is None else luminosity * lines
    flux = photometer.continuum(sps, continuum, redshift)
    return flux + photometer.lines(sps.line_wave, luminosity, redshift)


def line_transmission(sps: SPS, redshift: Array) -> Array:
    """IGM transmission at the lines (line,); Lyman-alpha counts as below its own step."""
    pixel = jnp.clip(jnp.searchsorted(sps.wave, sps.line_wave * 0.9999) - 1, 0, len(sps.wave) - 1)
    inside = sps.line_wave > LYMAN_LIMIT
    return jnp.where(inside, sps.transmission(redshift)[pixel], 0.0)
