"""Tables of reference photometry, computed from the synthesis."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popcosmos_hpc.model.reference import LineTable, ReferencePhotometry
from popcosmos_hpc.sps.cosmology import age_at
from popcosmos_hpc.sps.filters import Filter
from popcosmos_hpc.sps.grid import AGE_EDGES, BIRTH_CLOUD_AGE, LYMAN_LIMIT, N_NEBULAR, N_YOUNG
from popcosmos_hpc.sps.spectrum import SPS, Photometer, build_photometer, hat_weights
from popcosmos_hpc.sps.star_formation import age_weights, bin_edges

_STEP = 0.004  # of ln(1 + redshift): two pixels of the synthesis, a fraction of a filter's edge
_GAP = 0.2  # in ln(wavelength), between a band and its leak
_HEAT_NODES = 64  # of redshift; only the ages of the populations depend on it
_HEAT_EDGES = np.geomspace(LYMAN_LIMIT, 3.0e4, 13)  # Angstrom; starlight beyond is hardly absorbed
_DEFAULT_GAS = (0.0, -2.5)  # log10 metallicity and ionisation around stars outside birth clouds


def build_line_table(sps: SPS, chosen: np.ndarray) -> LineTable:
    """Tabulate the luminosities of chosen lines (line,).

    Args:
        sps: the synthesis.
        chosen: (line,) indices among the lines of the synthesis.
    """
    # All ages that ionise lie in the first bin of the history, at a constant rate.
    age = (
        jnp.asarray(np.diff(AGE_EDGES[: N_NEBULAR + 1]) / 1e9, jnp.float32) / bin_edges(jnp.asarray(13.0))[1]
    )
    photons = sps.ionising[:, :N_NEBULAR] * age[None]
    lines = sps.lines[..., chosen]
    young = jnp.einsum("ma,gual->mgul", photons[:, :N_YOUNG], lines[:, :, :N_YOUNG])
    old = jnp.einsum("ma,gual->mgul", photons[:, N_YOUNG:], lines[:, :, N_YOUNG:])
    table = jnp.stack([young, old], axis=-1)
    return LineTable(table, sps.line_wave[chosen], sps.metals, sps.gas_metals, sps.gas_log_u)


class _Spectra(NamedTuple):
    """Rest-frame spectra (..., wave) of one redshift [Lsun/Angstrom]."""

    stars: Array
    nebula: Array
    bolometric: Array


def build_reference(
    sps: SPS, filters: tuple[Filter, ...], redshift_max: float, n_parts: int
) -> ReferencePhotometry:
    """Tabulate populations over redshift and metallicity.

    Args:
        sps: the synthesis.
        filters: the bands.
        redshift_max: end of the tables.
        n_parts: parts of equal throughput into which a band is cut, each with its own dust.
    """
    pieces = [piece for f in filters for piece in _cut(f, n_parts)]
    photometer = build_photometer(sps, pieces, redshift_max)
    share = jnp.asarray([_throughput(piece) for piece in pieces], jnp.float32).reshape(len(filters), n_parts)
    share = share / jnp.sum(share, axis=1, keepdims=True)
    space = {p.name: p for p in sps.space.parameters}
    keep = _inside(np.asarray(sps.metals), space["log10Z"].lower, space["log10Z"].upper)
    photons, cells = _young_photons(sps)
    at = _observer(photometer, share, keep, cells)
    nodes = np.arange(0.0, np.log1p(redshift_max) + _STEP, _STEP)
    # The synthesis knows nothing beyond its range: the last node repeats the end of it.
    tables = [at(sps, jnp.asarray(min(np.expm1(node), redshift_max), jnp.float32)) for node in nodes]
    stars, nebula, torus, dust, bolometric, wave = (jnp.stack(c) for c in zip(*tables, strict=True))
    coarse = np.minimum(np.expm1(np.linspace(0.0, nodes[-1], _HEAT_NODES)), redshift_max)
    heat, nebula_heat = _build_heat(sps, coarse, cells)
    heat_wave = jnp.asarray(np.sqrt(_HEAT_EDGES[1:] * _HEAT_EDGES[:-1]), jnp.float32)
    return ReferencePhotometry(
        stars, nebula, torus, dust, heat[:, keep], nebula_heat, heat_wave, bolometric, photons[keep], wave,
        jnp.asarray([0.0, _STEP], jnp.float32), sps.metals[keep], sps.gas_metals, sps.gas_log_u,
        sps.torus_log_tau, jnp.asarray([BIRTH_CLOUD_AGE / 1e9], jnp.float32),
    )  # fmt: skip


def _observer(photometer: Photometer, share: Array, keep: slice, cells: Array) -> Callable:
    """Function of synthesis and redshift: one row of every table, of shares (filter, part) of bands."""
    n_filters, n_parts = share.shape

    @eqx.filter_jit
    def at(sps: SPS, redshift: Array):
        transmission = sps.transmission(redshift)

        def observe(spectra: Array) -> Array:
            flat = spectra.reshape(-1, spectra.shape[-1]) * transmission[None]
            flux = jax.vmap(lambda s: photometer.continuum(sps, s, redshift))(flat) * share.ravel()[None]
            return jnp.swapaxes(flux.reshape(*spectra.shape[:-1], *share.shape), -1, -2)

        spectra = _spectra(sps, redshift, _count_bins(sps), cells)
        # The floors keep the mean defined where nothing is transmitted.
        flat = jnp.where(sps.wave > LYMAN_LIMIT, 1.0, 1e-6) * jnp.maximum(transmission, 1e-6) / sps.wave**2
        log_wave = jnp.log(sps.wave * (1 + redshift))
        weight = photometer.continuum(sps, flat, redshift)
        wave = jnp.exp(photometer.continuum(sps, flat * log_wave, redshift) / weight)
        wave = jnp.swapaxes(wave.reshape(n_filters, n_parts), 0, 1)
        return (
            observe(spectra.stars[keep]),
            observe(spectra.nebula),
            observe(sps.torus),
            observe(sps.dust),
            spectra.bolometric[keep],
            wave,
        )

    return at


def _count_bins(sps: SPS) -> int:
    """Bins of the history of star formation."""
    return 1 + sum(name.startswith("logsfr_ratio") for name in sps.space.names)


def _build_heat(sps: SPS, redshifts: np.ndarray, cells: Array) -> tuple[Array, Array]:
    """Light by bin of wavelength: (redshift, metal, population, bin), (gas metal, ionisation, bin)."""

    def members(wave: Array) -> Array:
        index = np.searchsorted(_HEAT_EDGES, np.asarray(wave)) - 1
        return jnp.asarray(index[:, None] == np.arange(len(_HEAT_EDGES) - 1), jnp.float32)

    @eqx.filter_jit
    def at(sps: SPS, redshift: Array) -> tuple[Array, Array]:
        spectra = _spectra(sps, redshift, _count_bins(sps), cells)
        weight = sps.pixel[:, None] * members_of_pixels
        return spectra.stars @ weight, spectra.nebula @ weight

    members_of_pixels = members(sps.wave)
    found = [at(sps, jnp.asarray(redshift, jnp.float32)) for redshift in redshifts]
    lines = jnp.einsum("a,gual->gul", cells, sps.lines[:, :, :N_YOUNG]) @ members(sps.line_wave)
    return jnp.stack([stars for stars, _ in found]), found[0][1] + lines


def _cut(f: Filter, n_parts: int) -> list[Filter]:
    """A filter cut into parts of equal throughput; a leak far from the band is a part by itself."""
    fine = np.unique(np.concatenate([f.wave, np.geomspace(f.wave[0], f.wave[-1], 4000)]))
    curve = np.interp(fine, f.wave, f.transmission)
    total = np.concatenate([[0.0], np.cumsum(0.5 * (curve[1:] + curve[:-1]) * np.diff(np.log(fine)))])
    total /= total[-1]
    dark = np.flatnonzero((np.diff(total) == 0) & (total[1:] > 0.5))
    leak = n_parts > 1 and len(dark) > 0 and np.log(fine[dark[-1]] / fine[dark[0]]) > _GAP
    levels = np.linspace(0, total[dark[0]], n_parts)[1:] if leak else np.linspace(0, 1, n_parts + 1)[1:-1]
    part = np.searchsorted(levels - 1e-12, 0.5 * (total[1:] + total[:-1]))
    return [_piece(f, fine, curve, part == index) for index in range(n_parts)]


def _piece(f: Filter, wave: np.ndarray, curve: np.ndarray, inside: np.ndarray) -> Filter:
    """The part of a curve in some of its intervals."""
    first, last = np.flatnonzero(inside)[[0, -1]]
    keep = slice(first, last + 2)
    return Filter(f.name, wave[keep], curve[keep], f.source)


def _throughput(f: Filter) -> float:
    return float(np.trapezoid(f.transmission, np.log(f.wave)))


def _inside(nodes: np.ndarray, low: float, high: float) -> slice:
    """The nodes that interpolation between two values needs."""
    first = max(int(np.searchsorted(nodes, low, side="right")) - 1, 0)
    return slice(first, int(np.searchsorted(nodes, high)) + 1)


def _young_photons(sps: SPS) -> tuple[Array, Array]:
    """Ionising photons of young stars (metal,), and how they divide over ages (age,)."""
    ages = jnp.asarray(np.diff(AGE_EDGES[: N_YOUNG + 1]) / BIRTH_CLOUD_AGE, jnp.float32)
    photons = sps.ionising[:, :N_YOUNG] * ages[None]
    return jnp.sum(photons, axis=1), jnp.mean(photons / jnp.sum(photons, axis=1, keepdims=True), axis=0)


def _spectra(sps: SPS, redshift: Array, n_bins: int, cells: Array) -> _Spectra:
    edges = bin_edges(age_at(sps.cosmology, redshift), n_bins)
    grid = jnp.asarray(AGE_EDGES / 1e9, jnp.float32)
    bins = jax.vmap(lambda masses: age_weights(masses, edges, grid))(jnp.eye(n_bins))
    young, rest = bins[:1].at[:, N_YOUNG:].set(0.0), bins[:1].at[:, :N_YOUNG].set(0.0)
    normal = lambda weights: weights / jnp.sum(weights)  # noqa: E731
    weights = jnp.concatenate([normal(young), normal(rest), bins[1:]])
    stars = jnp.einsum("pa,maw->mpw", weights, sps.stars)
    gas = hat_weights(jnp.asarray(_DEFAULT_GAS[0]), sps.gas_metals)
    log_u = hat_weights(jnp.asarray(_DEFAULT_GAS[1]), sps.gas_log_u)
    around_old = jnp.einsum("g,u,guaw->aw", gas, log_u, sps.continuum[:, :, N_YOUNG:])
    photons = weights[1:2, N_YOUNG:N_NEBULAR] * sps.ionising[:, N_YOUNG:N_NEBULAR]
    stars = stars.at[:, 1].add(photons @ around_old)
    nebula = jnp.einsum("a,guaw->guw", cells, sps.continuum[:, :, :N_YOUNG])
    return _Spectra(stars, nebula, jnp.einsum("pa,ma->mp", weights, sps.bolometric))
