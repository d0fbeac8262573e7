"""Numbers per volume and area: mass function, cosmic star formation rate, redshift distributions."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from popcosmos_hpc.report import figures, published_points
from popcosmos_hpc.report.figures import BLUE, GREEN, GREY, INK, ORANGE
from popcosmos_hpc.report.population_data import PIVOT_MASS, Population, shell
from popcosmos_hpc.report.published_points import MassFunctionBin
from popcosmos_hpc.report.section import Figure, Section, Table, Text, number
from popcosmos_hpc.training.number_density import mass_function

_MASS_EDGES = np.arange(8.0, 12.3, 0.2)
_MASSES = 0.5 * (_MASS_EDGES[1:] + _MASS_EDGES[:-1])
_RATE_EDGES = np.array([0.05, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
_MASSIVE = 10.0
_CUTS = (22.0, 23.0, 24.0, 25.0)

_ABOUT_MASSES = (
    "Stellar mass function of the population (blue) against COSMOS2020 (Weaver et al. 2023, orange: one "
    "sigma with cosmic variance and errors of mass) and the joined functions of Leja et al. 2020 and Weaver "
    "et al. 2023 (line). Pale points lie below the mass at which the draws are complete, estimated from "
    "their own mass-to-light ratios, which knows nothing of galaxies too red to be among them."
)
_ABOUT_CATALOGS = " Triangles: {names}, scaled at the pivot mass by the factor that it needs itself."
_ABOUT_RATE = (
    "Cosmic star formation rate density of all draws and of massive ones, against the points and the fit of "
    "Madau & Dickinson 2014 (times 0.63 for a Chabrier IMF). Rates of full spectral fits lie 0.2 to 0.5 dex "
    "below those of UV and infrared light (Leja et al. 2022)."
)
_ABOUT_LIMIT = (
    " Galaxies fainter than the limit of the draws are missing, so the sum is a lower bound that falls away "
    "with redshift."
)
_ABOUT_REDSHIFTS = (
    "Redshift distributions of magnitude cuts (blue, no noise) against the fits to counts and redshifts of "
    "the LSST Science Book (orange; i band, eqs. 3.7 to 3.9), in absolute numbers."
)
_ABOUT_COUNTS = (
    "Counts and mean redshifts of the cuts. Published: 46 x 10^(0.31 (i - 25)) per square arcmin, and p(z) "
    "in proportion to z^2 exp(-z / z0) with z0 = 0.0417 i - 0.744."
)


def densities_section(population: Population) -> Section:
    """Mass function in redshift bins, SFR density, and n(z) of magnitude cuts."""
    blocks = (Text(_normalisation(population)), _mass_functions(population), _cosmic_rate(population))
    return Section("densities", "Numbers", (*blocks, *_redshifts(population)))


def _normalisation(population: Population) -> str:
    if population.pivot is None:
        density = number(population.per_draw * population.n / 3600)
        return (
            f"The draws come with a number density, {density} per square arcmin. They are not rescaled to "
            "any measurement on this page."
        )
    low, high = population.pivot
    return (
        f"Draws have no number density. One factor makes the number of galaxies of 10^{PIVOT_MASS[0]} to "
        f"10^{PIVOT_MASS[1]} solar masses at {low} < z < {high} that of the mass function of Leja et al. "
        "2020 (joined to Weaver et al. 2023 beyond z = 3). It is the same at all masses and redshifts below."
    )


def in_words(offsets: list[float]) -> str:
    """How far the population lies from measurements [dex], as the end of a caption."""
    if not offsets:
        return ""
    median, spread = np.median(offsets), np.quantile(np.abs(offsets), 0.68)
    where = "above" if median > 0 else "below"
    return (
        f" In the median the population lies {abs(median):.2f} dex {where} the measurements, and within "
        f"{spread:.2f} dex of two thirds of the {len(offsets)} points that can be compared."
    )


def _histogram(redshift, log_mass, per_draw, low, high) -> tuple[np.ndarray, np.ndarray]:
    """Number density per bin of mass, and its Poisson error [per dex and Mpc^3]."""
    chosen = (redshift > low) & (redshift < high)
    counts, _ = np.histogram(log_mass[chosen], bins=_MASS_EDGES)
    scale = per_draw / (np.diff(_MASS_EDGES) * shell(low, high))
    return counts * scale, np.sqrt(counts) * scale


def _mass_functions(population: Population) -> Figure:
    offsets: list[float] = []
    with figures.canvas(7.0, 4.4) as figure:
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for axes, measured in zip(panels.ravel(), published_points.MASS_FUNCTIONS, strict=True):
            offsets += _mass_panel(axes, population, measured)
        for axes in panels[-1]:
            axes.set_xlabel("log10 stellar mass (Msun)")
        for axes in panels[:, 0]:
            axes.set_ylabel("galaxies per dex and Mpc$^3$")
        panels[0, 0].legend(loc="lower left")
        names = ", ".join(catalog.name for catalog in population.catalogs)
        about = _ABOUT_MASSES + (_ABOUT_CATALOGS.format(names=names) if names else "")
        return figures.encode(
            figure, about + in_words(offsets), "Stellar mass functions in six redshift bins."
        )


def _mass_panel(axes: Axes, population: Population, measured: MassFunctionBin) -> list[float]:
    """One redshift bin; offsets from the measurements [dex] where the population is complete."""
    low, high, points = measured
    redshift, log_mass = population["redshift"], population["log10_mass"]
    found, error = _histogram(redshift, log_mass, population.per_draw, low, high)
    complete, seen = _MASS_EDGES[:-1] > population.faintest_mass(low, high), found > 0
    for part, alpha, label in ((seen & complete, 1.0, "this population"), (seen & ~complete, 0.35, None)):
        bars = np.minimum(error, 0.999 * found)[part]
        axes.errorbar(
            _MASSES[part], found[part], bars, fmt="o", ms=3, color=BLUE, alpha=alpha, elinewidth=0.8,
            zorder=3, label=label,
        )  # fmt: skip
    mass, value, lower, upper = points.T
    bars = np.array([value - lower, upper - value])
    axes.errorbar(mass, value, bars, fmt="s", ms=3, color=ORANGE, elinewidth=0.8, label="Weaver+23")
    curve = mass_function(_MASSES, np.full_like(_MASSES, 0.5 * (low + high)))
    axes.plot(_MASSES, curve, color=INK, lw=0.9, label="Leja+20, Weaver+23")
    _catalog_points(axes, population, low, high)
    axes.set(title=f"{low:g} < z < {high:g}", yscale="log", ylim=(3e-7, 0.1), xlim=(8, 12.2))
    return _offsets(points, _MASSES[seen & complete], found[seen & complete])


def _catalog_points(axes: Axes, population: Population, low: float, high: float) -> None:
    nodes, limits = published_points.COMPLETE_3DHST
    if high > nodes[-1] + 0.01:
        return
    for catalog in population.catalogs:
        found, _ = _histogram(catalog.redshift, catalog.log_mass, catalog.per_galaxy, low, high)
        shown = (found > 0) & (_MASS_EDGES[:-1] > np.interp(high, nodes, limits))
        axes.plot(_MASSES[shown], found[shown], "^", ms=3, mfc="none", color=GREEN, label=catalog.name)


def _offsets(points: np.ndarray, mass: np.ndarray, value: np.ndarray) -> list[float]:
    """Log10 ratios to measurements of the masses that both cover."""
    if len(mass) < 2:
        return []
    inside = (points[:, 0] >= mass[0]) & (points[:, 0] <= mass[-1])
    return list(np.interp(points[inside, 0], mass, np.log10(value)) - np.log10(points[inside, 1]))


def _cosmic_rate(population: Population) -> Figure:
    redshift, rate = population["redshift"], 10 ** population["log10_sfr_100myr"]
    centres = 0.5 * (_RATE_EDGES[1:] + _RATE_EDGES[:-1])
    per_volume = population.per_draw / np.array([shell(low, high) for low, high in pairwise(_RATE_EDGES)])
    total = np.histogram(redshift, bins=_RATE_EDGES, weights=rate)[0] * per_volume
    massive = population["log10_mass"] > _MASSIVE
    heavy = np.histogram(redshift[massive], bins=_RATE_EDGES, weights=rate[massive])[0] * per_volume
    with figures.canvas(7.0, 3.2) as figure:
        axes = figure.subplots()
        _rate_measurements(axes)
        axes.plot(centres[total > 0], total[total > 0], "o-", color=BLUE, ms=4, label="this population")
        label = f"above 10^{_MASSIVE:g} solar masses"
        axes.plot(centres[heavy > 0], heavy[heavy > 0], "--", color=BLUE, lw=0.9, label=label)
        axes.set(xlabel="redshift", ylabel="SFR density (Msun/yr/Mpc$^3$)", yscale="log")
        axes.set(xlim=(0, 6), ylim=(1e-3, 0.4))
        axes.legend(loc="lower left", ncols=2)
        kept = total > 0
        offsets = list(np.log10(total[kept] / published_points.cosmic_rate(centres[kept])))
        about = _ABOUT_RATE + (_ABOUT_LIMIT if population.limit is not None else "") + in_words(offsets)
        return figures.encode(figure, about, "Cosmic star formation rate density against redshift.")


def _rate_measurements(axes: Axes) -> None:
    for (name, points), marker in zip(published_points.COSMIC_RATE_POINTS.items(), "os", strict=True):
        value = published_points.SALPETER_TO_CHABRIER * 10 ** points[:, 2]
        errors = value * np.array([1 - 10 ** -points[:, 4], 10 ** points[:, 3] - 1])
        axes.errorbar(
            0.5 * (points[:, 0] + points[:, 1]), value, errors, fmt=marker, ms=2.5, color=GREY,
            elinewidth=0.6, label=f"measurements, {name}",
        )  # fmt: skip
    grid = np.linspace(0, 6, 200)
    label = "Madau & Dickinson 2014"
    axes.plot(grid, published_points.cosmic_rate(grid), color=INK, lw=0.9, label=label)


def _redshifts(population: Population) -> list[Figure | Table | Text]:
    cuts = [cut for cut in _CUTS if population.limit is None or cut <= population.limit]
    if not cuts:
        return [Text("The draws are too bright for the magnitude cuts of this figure.", "note")]
    with figures.canvas(7.0, 2.6) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(cuts), sharex=True))
        rows = tuple(_cut(axes, population, cut) for axes, cut in zip(panels, cuts, strict=True))
        panels[0].set_ylabel("galaxies per arcmin$^2$ and unit z")
        alt = "Redshift distributions of galaxies brighter than several magnitudes."
        picture = figures.encode(figure, _ABOUT_REDSHIFTS, alt)
    titles = ("per square arcmin", "mean redshift")
    header = ("cut", *(f"{title}, {of}" for title in titles for of in ("population", "published")))
    return [picture, Table(header, rows, _ABOUT_COUNTS)]


def _cut(axes: Axes, population: Population, cut: float) -> tuple[str, ...]:
    """A panel of n(z), and its row of the table."""
    edges = np.linspace(0, 4, 41)
    centres = 0.5 * (edges[1:] + edges[:-1])
    redshift, per_draw = population["redshift"][population.magnitude < cut], population.per_draw / 3600
    counts, _ = np.histogram(redshift, bins=edges)
    axes.stairs(counts * per_draw / np.diff(edges), edges, color=BLUE, lw=1.3)
    expected = published_points.counts(cut)
    axes.plot(centres, expected * published_points.redshift_distribution(centres, cut), color=ORANGE, lw=1.0)
    name = f"{population.band} < {cut:g}"
    axes.set(title=name, xlabel="redshift", xlim=(0, 4), ylim=(0, None))
    mean = np.mean(redshift) if len(redshift) else np.nan
    published = 3 * published_points.redshift_scale(cut)
    return name, number(len(redshift) * per_draw), number(expected), f"{mean:.2f}", f"{published:.2f}"
