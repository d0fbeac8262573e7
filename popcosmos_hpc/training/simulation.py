"""Training draws and their exact photometry, made on the fly by the synthesis."""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.reference import FAINT
from popcosmos_hpc.parameters import ParameterSpace, pop_cosmos
from popcosmos_hpc.sps.filters import Filter, load_filter
from popcosmos_hpc.sps.grid import LYMAN_LIMIT, find_torus_file, wavelength_grid
from popcosmos_hpc.sps.load_bagpipes import load_bagpipes
from popcosmos_hpc.sps.load_dsps import load_dsps
from popcosmos_hpc.sps.load_fsps import load_fsps
from popcosmos_hpc.sps.spectrum import SPS, Photometer, build_photometer, build_sps, photometry
from popcosmos_hpc.training.anchor import Anchor, anchor_offset, build_anchor
from popcosmos_hpc.training.recipe import EmulatorRecipe, expand

LINE_FLOOR = 1e-6  # Lsun per Msun: an equivalent width below 0.1 Angstrom in any galaxy
_HEATING = 2.0e4  # Angstrom; starlight beyond is hardly absorbed
_CHUNK = 128  # fits the caches of a core


class Simulator(NamedTuple):
    """Everything that makes training examples.

    Attributes:
        recipe: what is trained.
        sps: the synthesis.
        filters: the bands.
        rest_filters: the rest-frame bands.
        bands: photometer of the bands.
        rest: photometer of the rest-frame bands.
        strong: (line,) True for lines that the line network learns; the rest stay in the continuum.
        width_lines: (width,) indices of the lines with equivalent widths.
        provenance: of the grids.
        anchor: published emulators to which the bands are corrected, or None.
    """

    recipe: EmulatorRecipe
    sps: SPS
    filters: tuple[Filter, ...]
    rest_filters: tuple[Filter, ...]
    bands: Photometer
    rest: Photometer
    strong: np.ndarray
    width_lines: np.ndarray
    provenance: dict
    anchor: Anchor | None


class Examples(NamedTuple):
    """Parameters and targets, all in magnitudes or dex.

    Attributes:
        theta: (draw, param).
        continuum: (draw, band) AB magnitudes for N = 0 with the weak lines, softly floored at `FAINT`.
        lines: (draw, strong line) log10 luminosity behind birth clouds [Lsun per Msun formed].
        rest: (draw, rest) absolute magnitudes for N = 0, log10 surviving fraction, and log10
            continuum densities at the lines with equivalent widths [Lsun/Angstrom per Msun].
    """

    theta: np.ndarray
    continuum: np.ndarray
    lines: np.ndarray
    rest: np.ndarray


def build_simulator(recipe: EmulatorRecipe) -> Simulator:
    """Load grids and filters of a recipe.

    Raises:
        ConfigurationError: a file, filter or line does not exist.
    """
    low, high = recipe.redshift
    filters = tuple(load_filter(name, source) for name, source in recipe.bands.items())
    rest = tuple(load_filter(name, source) for name, source in recipe.rest_bands.items())
    anchors = recipe.anchor.bands.items() if recipe.anchor else ()
    observed = [*filters, *(load_filter(name, source) for name, source in anchors)]
    blue = min(min(f.wave[0] for f in observed) / (1 + high), min(f.wave[0] for f in rest))
    red = max(f.wave[-1] for f in (*observed, *rest))
    # All starlight that heats dust must lie on the axis, whatever the bands.
    wave = wavelength_grid(
        min(0.98 * blue, LYMAN_LIMIT), max(1.02 * red, _HEATING), recipe.synthesis.resolution
    )
    torus = expand(recipe.synthesis.torus) or find_torus_file()
    grids = _load_grids(recipe, wave, torus)
    sps = build_sps(grids, pop_cosmos(high), recipe.synthesis.agn, high)
    names = list(sps.line_names)
    unknown = [line for line in recipe.width_lines.values() if line not in names]
    if unknown:
        raise ConfigurationError(
            f"lines among {', '.join(names)}", ", ".join(unknown), "width_lines", "Correct their names."
        )
    width = np.array([names.index(line) for line in recipe.width_lines.values()])
    bands = build_photometer(sps, list(filters), high)
    probe = draw_parameters(np.random.default_rng(recipe.seed), sps.space, 1024, low, high)
    strong = _strong_lines(sps, probe, recipe.strong_line)
    strong[width] = True
    anchor = None
    if recipe.anchor is not None:
        anchor = build_anchor(expand(recipe.anchor.folder), recipe.anchor.bands, sps, high)
    rest_bands = build_photometer(sps, list(rest), 0.0)
    return Simulator(recipe, sps, filters, rest, bands, rest_bands, strong, width, grids.provenance, anchor)


def restricted(simulator: Simulator, recipe: EmulatorRecipe) -> Simulator:
    """The same synthesis for the bands of one recipe among those united."""
    filters = tuple(load_filter(name, source) for name, source in recipe.bands.items())
    bands = build_photometer(simulator.sps, list(filters), recipe.redshift[1])
    return simulator._replace(recipe=recipe, filters=filters, bands=bands)


def _load_grids(recipe: EmulatorRecipe, wave: np.ndarray, torus):
    if recipe.synthesis.backend == "bagpipes":
        return load_bagpipes(wave, torus)
    if recipe.synthesis.backend == "dsps":
        return load_dsps(expand(recipe.synthesis.file), wave, torus)
    return load_fsps(wave, torus)


def draw_parameters(
    rng: np.random.Generator, space: ParameterSpace, n: int, low: float, high: float
) -> np.ndarray:
    """Draws (n, param) from the training box.

    The box of the published emulators (their stored shifts and scales): uniform, but Student-t
    ratios (2 degrees of freedom, scale 0.3, cut at 5), uniform sqrt(dust2), and a clipped normal
    dust1_fraction; the stellar metallicity is uniform. N is 0.
    """
    theta = np.zeros((n, space.size), np.float32)
    for index, parameter in enumerate(space.parameters):
        if parameter.name == "N":
            continue
        if parameter.name.startswith("logsfr_ratio"):
            theta[:, index] = _student(rng, n, parameter.upper)
        elif parameter.name == "dust2":
            theta[:, index] = rng.uniform(0, np.sqrt(parameter.upper), n) ** 2
        elif parameter.name == "dust1_fraction":
            theta[:, index] = np.clip(rng.normal(1.0, 0.4, n), parameter.lower, parameter.upper)
        else:
            theta[:, index] = rng.uniform(parameter.lower, parameter.upper, n)
    theta[:, space.index("redshift")] = rng.uniform(low, high, n)
    return theta


def _student(rng: np.random.Generator, n: int, bound: float) -> np.ndarray:
    values = 0.3 * rng.standard_t(2, n)
    while (outside := np.abs(values) > bound).any():
        values[outside] = 0.3 * rng.standard_t(2, outside.sum())
    return values


def _strong_lines(sps: SPS, theta: np.ndarray, least: float) -> np.ndarray:
    """Lines that add more than `least` to a band of R = 5 in 1 % of galaxies, in the rest-frame range."""
    luminosity, spectrum = [], []
    one = eqx.filter_jit(jax.vmap(lambda t: (sps.line_luminosities(t), sps.luminosity(t))))
    for start in range(0, len(theta), _CHUNK):
        lines, continuum = one(jnp.asarray(theta[start : start + _CHUNK]))
        luminosity.append(np.asarray(lines))
        spectrum.append(np.asarray(continuum))
    wave, line_wave = np.asarray(sps.wave), np.asarray(sps.line_wave)
    pixel = np.clip(np.searchsorted(wave, line_wave), 0, len(wave) - 1)
    share = np.concatenate(luminosity) / (np.concatenate(spectrum)[:, pixel] * line_wave / 5 + 1e-30)
    inside = (line_wave > 912.0) & (line_wave < wave[-1])
    return inside & (np.percentile(share, 99, axis=0) > least)


class Source:
    """A reservoir of examples, part of which is replaced after each round.

    Reproducible: the draws of round k depend on the seed and k alone.

    Args:
        simulator: what makes examples.
        seed: of the draws.
        folder: where examples are kept, so that several networks and a resumed training find them made.
    """

    def __init__(self, simulator: Simulator, seed: int, folder: Path | None = None):
        self._simulator, self._seed, self._folder = simulator, seed, folder
        self._one = eqx.filter_jit(jax.vmap(lambda theta: _targets(simulator, theta)))
        self._examples: Examples | None = None

    def simulate(self, stream: int, n: int) -> Examples:
        """`n` examples of a numbered random stream."""
        if self._folder is None:
            return self._simulate(stream, n)
        path = self._folder / f"{stream:06d}-{n}.npz"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, *self._simulate(stream, n))
            partial.replace(path)
        with np.load(path) as stored:
            return Examples(*(stored[name] for name in stored.files))

    def _simulate(self, stream: int, n: int) -> Examples:
        recipe = self._simulator.recipe
        rng = np.random.default_rng([self._seed, stream])
        n = -(-n // _CHUNK) * _CHUNK
        theta = draw_parameters(rng, self._simulator.sps.space, n, *recipe.redshift)
        parts = [self._one(jnp.asarray(theta[i : i + _CHUNK])) for i in range(0, n, _CHUNK)]
        targets = [np.concatenate([np.asarray(part[k]) for part in parts]) for k in range(3)]
        return Examples(theta, *targets)

    def round(self, index: int) -> Examples:
        """The reservoir at round `index`."""
        recipe = self._simulator.recipe
        if self._examples is None:
            self._examples = self.simulate(1, recipe.n_reservoir)
        elif recipe.n_fresh:
            fresh = self.simulate(2 + index, recipe.n_fresh)
            for old, new in zip(self._examples, fresh, strict=True):
                old[self.replaced(index)] = new
        return self._examples

    def replaced(self, index: int) -> slice:
        """Rows of the reservoir that round `index` replaces."""
        n_fresh, n = (-(-size // _CHUNK) * _CHUNK for size in self._sizes())
        start = index * n_fresh % max(n - n_fresh, 1)
        return slice(start, start + n_fresh)

    def columns(self, simulator: Simulator) -> list[int]:
        """Columns of the continuum that hold the bands of a simulator."""
        sources = list(self._simulator.recipe.bands.values())
        return [sources.index(source) for source in simulator.recipe.bands.values()]

    def _sizes(self) -> tuple[int, int]:
        recipe = self._simulator.recipe
        return recipe.n_fresh, recipe.n_reservoir


def target_flux(simulator: Simulator, theta: Array) -> Array:
    """Fluxes (band,) for N = 0 that the emulator is to give, anchored if so asked [nanomaggies]."""
    flux = photometry(simulator.sps, simulator.bands, theta)
    if simulator.anchor is None:
        return flux
    pivots = jnp.asarray([f.pivot for f in simulator.filters], jnp.float32)
    return flux * 10 ** (-0.4 * anchor_offset(simulator.anchor, simulator.sps, theta, pivots))


def _targets(simulator: Simulator, theta: Array) -> tuple[Array, Array, Array]:
    sps = simulator.sps
    weak = jnp.asarray(~simulator.strong, jnp.float32)
    flux = photometry(sps, simulator.bands, theta, weak)
    if simulator.anchor is not None:
        total = target_flux(simulator, theta)
        # The strong lines are kept as they are; what remains of the corrected total is continuum.
        flux = jnp.maximum(total - (photometry(sps, simulator.bands, theta) - flux), 0.05 * flux)
    continuum = -2.5 * jnp.log10(flux * 10**-9.0 + 10 ** (-0.4 * FAINT))
    lines = jnp.log10(sps.lines_behind_clouds(theta)[np.flatnonzero(simulator.strong)] + LINE_FLOOR)
    spectrum = sps.luminosity(theta)
    still = jnp.zeros(())
    rest = simulator.rest.continuum(sps, spectrum, still)
    rest += simulator.rest.lines(sps.line_wave, sps.line_luminosities(theta), still)
    magnitudes = -2.5 * jnp.log10(rest * 10**-9.0 + 10 ** (-0.4 * FAINT))
    surviving = jnp.log10(sps.weights(theta).surviving)
    pixel = jnp.searchsorted(sps.wave, sps.line_wave[simulator.width_lines])
    density = jnp.log10(spectrum[pixel] + 1e-12)
    return continuum, lines, jnp.concatenate([magnitudes, surviving[None], density])
