"""The sample as a population: redshifts, masses, star formation rates, and masses against truth."""

import numpy as np

from popcosmos_hpc.report import figures, metrics
from popcosmos_hpc.report.figures import BLUE, GREY, INK, ORANGE
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import Figure, Section, Table, Text

_MASS, _SFR = "log10_mass", "log10_sfr_100myr"
_LABELS = {
    "redshift": "redshift",
    "log10_mass": "log10 stellar mass (Msun)",
    "log10_mass_formed": "log10 mass formed (Msun)",
    "log10_sfr_100myr": "log10 SFR over 100 Myr (Msun/yr)",
}


def population_section(run: RunData) -> Section:
    """N(z), the mass-redshift plane, the SFR-mass plane and derived quantities against truth."""
    mass = _MASS if _MASS in run.names else "log10_mass_formed"
    blocks: list[Figure | Table | Text] = []
    if "redshift" in run.names:
        blocks.append(_redshift_distribution(run))
    if mass in run.names and "redshift" in run.names:
        blocks.append(_plane(run, "redshift", mass, "Stellar mass against redshift: posterior medians."))
    if mass in run.names and _SFR in run.names:
        blocks.append(_star_formation(run, mass))
    if len(blocks) < 2:
        blocks.append(Text("The model of this run gives no stellar masses or star formation rates.", "note"))
    blocks += _against_truth(run)
    return Section("population", "Population", tuple(blocks))


def _redshift_distribution(run: RunData) -> Figure:
    medians = run.median("redshift")
    top = figures.limits(medians[np.isfinite(medians)], 0.002)[1] if np.isfinite(medians).any() else 1.0
    edges = np.linspace(0, max(top, 0.1), int(np.clip(2 * len(medians) ** 0.5, 12, 60)) + 1)
    stacked = metrics.stacked_density(run.redshift_quantiles, run.redshift_levels, edges)
    with figures.canvas(7.0, 2.8) as figure:
        axes = figure.subplots()
        counts, _ = np.histogram(medians, bins=edges)
        axes.stairs(counts, edges, fill=True, color=GREY, alpha=0.45, label="posterior medians")
        axes.stairs(stacked, edges, color=BLUE, linewidth=1.4, label="stacked p(z)")
        truth = run.truth.get("redshift")
        if truth is not None:
            known = np.isfinite(truth)
            scale = len(medians) / max(np.count_nonzero(known), 1)
            histogram, _ = np.histogram(truth[known], bins=edges)
            label = "known redshifts" if scale < 1.001 else "known redshifts, scaled to all"
            axes.stairs(histogram * scale, edges, color=ORANGE, linewidth=1.2, label=label)
        axes.set(xlabel="redshift", ylabel="galaxies per bin", xlim=(0, edges[-1]), ylim=(0, None))
        axes.legend()
        return figures.encode(
            figure,
            "N(z): the sum of all posteriors p(z), and the histogram of their medians. The sum is broader "
            "than the true distribution, since every galaxy adds its uncertainty.",
            "Redshift distribution of the sample.",
        )


def _plane(run: RunData, x: str, y: str, caption: str) -> Figure:
    first, second = run.median(x), run.median(y)
    with figures.canvas(7.0, 3.0) as figure:
        axes = figure.subplots()
        figures.density(axes, first, second, (*figures.limits(first), *figures.limits(second)))
        axes.set(xlabel=_LABELS.get(x, x), ylabel=_LABELS.get(y, y))
        return figures.encode(figure, caption, f"{_LABELS.get(y, y)} against {_LABELS.get(x, x)}.")


def _star_formation(run: RunData, mass: str) -> Figure:
    redshift, x, y = run.median("redshift"), run.median(mass), run.median(_SFR)
    finite = np.isfinite(redshift) & np.isfinite(x) & np.isfinite(y)
    edges = np.quantile(redshift[finite], [0, 1 / 3, 2 / 3, 1]) if finite.any() else np.array([0.0, 1, 2, 3])
    extent = (*figures.limits(x, 0.01), *figures.limits(y, 0.03))
    with figures.canvas(7.0, 2.7) as figure:
        panels = figure.subplots(1, 3, sharey=True, sharex=True)
        for axes, low, high in zip(panels, edges, edges[1:], strict=False):
            inside = finite & (redshift >= low) & (redshift <= high)
            figures.density(axes, x[inside], y[inside], extent)
            # Lines of constant specific rate guide the eye: 1e-9 and 1e-11 per year.
            for rate, style in ((-9, "--"), (-11, ":")):
                axes.plot(extent[:2], np.array(extent[:2]) + rate, color=INK, linewidth=0.7, linestyle=style)
            axes.set(title=f"{low:.2f} < redshift < {high:.2f}", xlabel="log10 mass (Msun)")
            axes.set(xlim=extent[:2], ylim=extent[2:])
        panels[0].set_ylabel("log10 SFR, 100 Myr (Msun/yr)")
        return figures.encode(
            figure,
            "Star formation rate against stellar mass in thirds of redshift: posterior medians; lines of "
            "constant specific rate, 1e-9 (dashed) and 1e-11 (dotted) per year.",
            "Star formation rate against stellar mass in three redshift bins.",
        )


def _against_truth(run: RunData) -> list[Figure | Table]:
    names = [name for name in run.truth if name != "redshift" and name in run.names]
    if not names:
        return []
    rows = []
    for name in names:
        n, offset, scatter = metrics.offset_and_scatter(run.median(name), run.truth[name])
        inside = run.truth_within(name)
        rows.append((name, f"{n:,}", f"{offset:.3f}", f"{scatter:.3f}", f"{metrics.share(inside):.3f}"))
    caption = (
        "Posterior medians against values known from elsewhere: median offset, 1.4826 MAD scatter, and the "
        "fraction of known values inside the 16 to 84 percent interval (0.68 if both are right)."
    )
    table = Table(("quantity", "galaxies", "offset", "scatter", "inside 68 %"), tuple(rows), caption)
    mass = next((name for name in (_MASS, "log10_mass_formed") if name in names), None)
    return [table, *([_mass_against_truth(run, mass)] if mass else [])]


def _mass_against_truth(run: RunData, name: str) -> Figure:
    truth, median = run.truth[name], run.median(name)
    usable = np.isfinite(truth) & np.isfinite(median)
    low, high = figures.limits(truth[usable], 0.002)
    with figures.canvas(7.0, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        figures.density(left, truth[usable], median[usable], (low, high, low, high))
        left.plot([low, high], [low, high], color=ORANGE, linewidth=0.9)
        left.set(xlabel=f"known {_LABELS.get(name, name)}", ylabel="posterior median", aspect="equal")
        difference = (median - truth)[usable]
        figures.density(
            right,
            run.median("redshift")[usable],
            difference,
            (*figures.limits(run.median("redshift")), -1, 1),
        )
        right.axhline(0, color=ORANGE, linewidth=0.9)
        right.set(xlabel="redshift", ylabel="posterior median - known (dex)")
        return figures.encode(
            figure, "Stellar masses against known ones, and the difference with redshift.",
            "Posterior masses against known masses.",
        )  # fmt: skip
