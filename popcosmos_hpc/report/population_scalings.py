"""Relations between quantities of galaxies: star formation, metals and AGN against mass and rate."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from popcosmos_hpc.report import figures, published_points
from popcosmos_hpc.report.figures import BLUE, GREEN, INK, ORANGE
from popcosmos_hpc.report.population_data import Population
from popcosmos_hpc.report.section import Figure, Section
from popcosmos_hpc.training import galaxy_relations as relations

_PANELS = ((0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (2.0, 3.0))
_OXYGEN_PANELS = ((0.0, 0.3), (2.0, 2.6), (3.0, 3.6))
_AGN_EDGES = np.array([0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
_MASS_EDGES = np.arange(8.0, 12.01, 0.25)
_FORMING = -1.0  # dex below the ridge: between the sequence and the quiescent galaxies
_ACTIVE = -2.0  # log10 of the specific accretion rate, Eddington units
_FINER = np.linspace(7.5, 12, 91)
_MASS_LABEL = "log10 stellar mass (Msun)"
_MEDIAN: dict = {"ms": 4, "color": "white", "mec": BLUE, "mew": 1.2, "ls": "none"}

_ABOUT_SEQUENCE = (
    "Star formation rate against mass, and the running median of galaxies less than 1 dex below the ridge "
    "(white). Line: ridge of Leja et al. 2022, from full spectral fits (outside its limits carried on by "
    "Popesso et al. 2023); dashed: Popesso et al. 2023, UV + infrared; squares: stacks of Koprowski et al. "
    "2026, UV + infrared."
)
_ABOUT_STELLAR = (
    "Stellar metallicity against mass: medians (white), 16 and 84 percent (bars). Left: SDSS (Gallazzi et "
    "al. 2005; the band from 16 to 84 percent holds errors of measurement too). Right: ultraviolet spectra "
    "of VANDELS (Cullen et al. 2019; the lower mass has an upper limit)."
)
_ABOUT_OXYGEN = (
    "Gas-phase oxygen abundance of star-forming galaxies (Sun: 8.69), medians in white. Left: SDSS (Curti et "
    "al. 2020, median, 16 and 84 percent); middle and right: MOSDEF (Sanders et al. 2021)."
)
_ABOUT_AGN = (
    "AGN of galaxies above 10^9.5 solar masses. Left: share whose AGN is brighter than a hundredth of the "
    "Eddington luminosity of a black hole of 0.002 stellar masses, by distance from the star-forming "
    "sequence; black: X-ray AGN of all galaxies (Aird et al. 2012; dotted where it was not measured). "
    "Right: AGN luminosity relative to starlight against the distance from the sequence."
)


def scalings_section(population: Population) -> Section:
    """Star-forming sequence, both mass-metallicity relations, and AGN."""
    parts = (_sequence, _stellar_metals, _oxygen, _accretion)
    return Section("scalings", "Relations", tuple(part(population) for part in parts))


def _excess(population: Population) -> np.ndarray:
    """Log10 SFR above the ridge of Leja et al. 2022 (n,)."""
    ridge = relations.star_forming_sequence(population["log10_mass"], population["redshift"])
    return population["log10_sfr_100myr"] - ridge


def _medians(axes: Axes, x: np.ndarray, y: np.ndarray, edges=_MASS_EDGES) -> tuple[np.ndarray, np.ndarray]:
    """Draw running medians; their abscissae and quantiles 16, 50 and 84 percent."""
    centres, quantiles = figures.running(x, y, edges, 20)
    axes.plot(centres, quantiles[:, 1], "o", **_MEDIAN)
    return centres, quantiles


def _sequence(population: Population) -> Figure:
    offsets: list[float] = []
    with figures.canvas(7.0, 5.0) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for axes, (low, high) in zip(panels.ravel(), _PANELS, strict=True):
            offsets += _sequence_panel(axes, population, low, high)
            _catalog_medians(axes, population, low, high)
        for axes in panels[-1]:
            axes.set_xlabel(_MASS_LABEL)
        for axes in panels[:, 0]:
            axes.set_ylabel("log10 SFR, 100 Myr (Msun/yr)")
        names = ", ".join(catalog.name for catalog in population.catalogs)
        about = _ABOUT_SEQUENCE + (f" Triangles: medians of {names}, likewise." if names else "")
        if offsets:
            about += (
                f" Between 10^9 and 10^11.4, medians lie {np.median(offsets):+.2f} dex from the ridge "
                f"({min(offsets):+.2f} to {max(offsets):+.2f})."
            )
        return figures.encode(
            figure, about, "Star formation rate against stellar mass in four redshift bins."
        )


def _sequence_panel(axes: Axes, population: Population, low: float, high: float) -> list[float]:
    """One redshift bin; offsets of the medians from the ridge [dex]."""
    mass, rate, redshift = (population[name] for name in ("log10_mass", "log10_sfr_100myr", "redshift"))
    chosen = (redshift > low) & (redshift < high)
    figures.density(axes, mass[chosen], rate[chosen], (8, 12, -3.5, 3.5))
    middle = 0.5 * (low + high)
    at = np.full_like(_FINER, middle)
    axes.plot(_FINER, relations.star_forming_sequence(_FINER, at), color=INK, lw=1.1)
    axes.plot(_FINER, relations.popesso_sequence(_FINER, at), color=INK, lw=0.9, ls="--")
    points = published_points.SEQUENCE_POINTS
    points = points[(points[:, 0] > low) & (points[:, 0] < high)]
    axes.errorbar(points[:, 1], points[:, 2], points[:, 3], fmt="s", ms=4, color=ORANGE, mec="white")
    forming = chosen & (_excess(population) > _FORMING)
    centres, quantiles = _medians(axes, mass[forming], rate[forming])
    axes.set(title=f"{low:g} < z < {high:g}", xlim=(8, 12), ylim=(-3.5, 3.5))
    inside = (centres > 9.0) & (centres < 11.4)
    ridge = relations.star_forming_sequence(centres[inside], np.full(np.count_nonzero(inside), middle))
    return list(quantiles[inside, 1] - ridge)


def _catalog_medians(axes: Axes, population: Population, low: float, high: float) -> None:
    for catalog in population.catalogs:
        ridge = relations.star_forming_sequence(catalog.log_mass, catalog.redshift)
        complete = np.interp(catalog.redshift, *published_points.COMPLETE_3DHST)
        chosen = (catalog.redshift > low) & (catalog.redshift < high) & (catalog.log_mass > complete)
        chosen &= np.isfinite(catalog.log_sfr) & (catalog.log_sfr - ridge > _FORMING)
        centres, quantiles = figures.running(
            catalog.log_mass[chosen], catalog.log_sfr[chosen], _MASS_EDGES, 20
        )
        axes.plot(centres, quantiles[:, 1], "^", ms=4, color=GREEN, mec="white", mew=0.4)


def _stellar_metals(population: Population) -> Figure:
    mass, metals, redshift = (population[name] for name in ("log10_mass", "log10Z", "redshift"))
    far = (redshift > 2.5) & (redshift < 5.0) & (_excess(population) > _FORMING)
    table, about = relations.GALLAZZI, _ABOUT_STELLAR
    with figures.canvas(7.0, 3.0) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, chosen in ((left, redshift < 0.3), (right, far)):
            figures.density(axes, mass[chosen], metals[chosen], (8, 12, -2.0, 0.25))
            centres, quantiles = _medians(axes, mass[chosen], metals[chosen])
            for column in (0, 2):
                axes.plot(centres, quantiles[:, column], "_", ms=7, color=BLUE)
            axes.set(xlabel=_MASS_LABEL)
            inside = (centres > table[0, 0]) & (centres < table[-1, 0])
            if axes is left and inside.any():
                expected = np.interp(centres[inside], table[:, 0], table[:, 1])
                about += (
                    f" Left, medians lie {np.median(quantiles[inside, 1] - expected):+.2f} dex from SDSS."
                )
        left.fill_between(table[:, 0], table[:, 2], table[:, 3], color=ORANGE, alpha=0.2, lw=0)
        left.plot(table[:, 0], table[:, 1], color=ORANGE)
        left.set(title="z < 0.3", ylabel="log10 stellar metallicity / solar")
        (upper_mass, upper), (one_mass, one) = published_points.YOUNG_METALLICITIES
        right.errorbar(
            upper_mass, np.log10(upper), 0.12, uplims=True, fmt="s", ms=5, color=ORANGE, mec="white"
        )
        right.plot(one_mass, np.log10(one), "s", ms=5, color=ORANGE, mec="white")
        right.set(title="2.5 < z < 5, star-forming")
        return figures.encode(figure, about, "Stellar metallicity against mass, nearby and distant.")


def _oxygen(population: Population) -> Figure:
    mass, redshift, said = population["log10_mass"], population["redshift"], []
    oxygen, forming = population["gaslog10Z"] + relations.SOLAR_OXYGEN, _excess(population) > _FORMING
    with figures.canvas(7.0, 2.9) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (low, high) in zip(panels, _OXYGEN_PANELS, strict=True):
            chosen = forming & (redshift > low) & (redshift < high)
            figures.density(axes, mass[chosen], oxygen[chosen], (8, 11.5, 7.5, 9.2))
            grid, curve = _oxygen_curve(axes, low, high)
            axes.plot(grid, curve, color=ORANGE)
            centres, quantiles = _medians(axes, mass[chosen], oxygen[chosen])
            axes.set(title=f"{low:g} < z < {high:g}", xlabel=_MASS_LABEL)
            inside = (centres >= grid[0]) & (centres <= grid[-1])
            difference = quantiles[inside, 1] - np.interp(centres[inside], grid, curve)
            said.append(f"{np.median(difference):+.2f}" if inside.any() else "n/a")
        panels[0].set_ylabel("12 + log10(O/H)")
        about = f"{_ABOUT_OXYGEN} Medians lie {', '.join(said)} dex from the measurements, left to right."
        return figures.encode(figure, about, "Gas metallicity against mass in three redshift bins.")


def _oxygen_curve(axes: Axes, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Measured 12 + log10(O/H) over log10 mass in a redshift bin."""
    if high < 1:
        points = published_points.OXYGEN_POINTS
        axes.fill_between(points[:, 0], points[:, 2], points[:, 3], color=ORANGE, alpha=0.2, lw=0)
        return points[:, 0], points[:, 1]
    grid = np.linspace(9.0, 10.7, 18)
    return grid, published_points.distant_oxygen(grid, 0.5 * (low + high))


def _accretion(population: Population) -> Figure:
    mass, redshift, excess = population["log10_mass"], population["redshift"], _excess(population)
    starlight = 1e10 * 10 ** (population["log10_sfr_100myr"] - mass) + relations.old_starlight(redshift)
    fraction = population["lnfagn"] / np.log(10)
    rate, massive = fraction + np.log10(starlight / relations.EDDINGTON), mass > 9.5
    groups = (
        ("within 0.5 dex of the sequence", np.abs(excess) < 0.5, BLUE),
        ("more than 0.5 dex above", excess > 0.5, ORANGE),
        ("more than 1 dex below", excess < _FORMING, GREEN),
    )
    with figures.canvas(7.0, 3.0) as figure:
        left, right = figure.subplots(1, 2)
        for name, chosen, colour in groups:
            centres, share = _shares(redshift[chosen & massive], rate[chosen & massive] > _ACTIVE)
            left.plot(centres, 100 * share, "o-", ms=4, color=colour, label=name)
        _accretion_curve(left)
        left.set(xlabel="redshift", ylabel="percent above 1 percent of Eddington", yscale="log")
        left.set(xlim=(0, 4), ylim=(0.1, 100))
        left.legend(loc="lower right")
        chosen = massive & (redshift > 1) & (redshift < 2)
        figures.density(right, excess[chosen], fraction[chosen], (-3.5, 1.5, -5, 0.5))
        _medians(right, excess[chosen], fraction[chosen], np.arange(-3.5, 1.6, 0.5))
        right.axvline(0, color=INK, lw=0.7, ls=":")
        right.set(xlabel="log10 SFR above the ridge (dex)", ylabel="log10 $f_{AGN}$", title="1 < z < 2")
        return figures.encode(figure, _ABOUT_AGN, "Frequency of AGN against redshift and star formation.")


def _shares(redshift: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of active galaxies in bins of redshift that hold at least 100, none where none is active."""
    centres, shares = [], []
    for low, high in pairwise(_AGN_EDGES):
        inside = (redshift > low) & (redshift < high)
        if np.count_nonzero(inside) >= 100 and active[inside].any():
            centres.append(0.5 * (low + high))
            shares.append(active[inside].mean())
    return np.array(centres), np.array(shares)


def _accretion_curve(axes: Axes) -> None:
    grid = np.linspace(0.2, 2.5, 93)
    level = relations.agn_level(grid, np.zeros(len(grid), bool), np.zeros_like(grid))
    share = 100 * relations.accretion_survival(np.full_like(grid, _ACTIVE), level)
    axes.plot(grid[grid <= 1], share[grid <= 1], color=INK, lw=1.0, label="Aird+12")
    axes.plot(grid[grid >= 1], share[grid >= 1], color=INK, lw=1.0, ls=":")
