"""Photometric redshifts against known ones: the section that most readers open first."""

import numpy as np

from popcosmos_hpc.report import figures, metrics
from popcosmos_hpc.report.figures import BLUE, GREY, INK, ORANGE
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import SIGMA, Figure, Section, Table, Text

_REDSHIFT_EDGES = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0])
_COVERAGES = (0.5, 0.68, 0.9, 0.95)
_HEADER = ("galaxies", "bias", f"{SIGMA}_MAD", "|Δz| > 0.15", f"{SIGMA}_IQR", "RAIL outliers")
_EXPLAIN = (
    "Δz = (z_phot - z_spec) / (1 + z_spec), with z_phot the posterior's median. Bias: median of Δz. "
    f"{SIGMA}_MAD: 1.4826 times the median absolute deviation from the median. {SIGMA}_IQR: interquartile "
    f"range / 1.349. RAIL outliers: |Δz| > max(0.06, 3 {SIGMA}_IQR). Errors are bootstrap standard errors."
)


def photo_z_section(run: RunData) -> Section:
    """Metrics, density plot, bins, PIT and coverage; a note where no redshift is known."""
    truth = run.truth.get("redshift")
    usable = np.isfinite(truth) & np.isfinite(run.median("redshift")) if truth is not None else None
    if truth is None or usable is None or not usable.any():
        note = (
            "No known redshifts to compare with. Pass a column named redshift_spec (or truth_redshift) "
            "through ingest, or give a table of truths to the report."
        )
        return Section("photo-z", "Photometric redshifts", (Text(note, "note"),))
    estimate, known = run.median("redshift")[usable], truth[usable]
    magnitudes = run.reference_magnitude()[usable]
    pit = metrics.pit_values(run.redshift_quantiles[usable], run.redshift_levels, known)
    blocks = (
        *_warn_if_used(run),
        _overall(run, usable, truth),
        _density(estimate, known),
        _in_bins(estimate, known, known, _REDSHIFT_EDGES, "known redshift", ".2f"),
        _in_bins(
            estimate, known, magnitudes, _magnitude_edges(magnitudes), f"{run.reference_band} (AB mag)", ".1f"
        ),
        _calibration(pit),
        _coverage_table(run, pit, run.certificate["status"][usable] == 0),
    )
    return Section("photo-z", "Photometric redshifts", blocks)


def headline(run: RunData) -> tuple[str, metrics.PointMetrics] | None:
    """Name and point metrics of the galaxies with the best known redshifts, or None where there are none."""
    truth = run.truth.get("redshift")
    if truth is None:
        return None
    name, chosen = run.secure()
    found = metrics.point_metrics(run.median("redshift")[chosen], truth[chosen])
    return (name, found) if found.n else None


def _warn_if_used(run: RunData) -> tuple[Text, ...]:
    if not run.config.get("model", {}).get("use_redshift"):
        return ()
    return (
        Text("Known redshifts were part of the fit (model.use_redshift): this is no test of them.", "note"),
    )


def _cells(found: metrics.PointMetrics) -> tuple[str, ...]:
    return (
        f"{found.n:,}",
        f"{found.bias:.4f}",
        f"{found.sigma_mad:.4f}",
        f"{found.outliers:.4f}",
        f"{found.sigma_iqr:.4f}",
        f"{found.rail_outliers:.4f}",
    )


def _overall(run: RunData, usable: np.ndarray, truth: np.ndarray) -> Table:
    passed = run.certificate["status"] == 0
    estimate = run.median("redshift")
    samples = {"all": usable, "status OK": usable & passed, "flagged": usable & ~passed}
    for name, chosen in run.truth_classes().items():
        samples[name] = usable & chosen
    rows = [
        (name, *_cells(metrics.point_metrics(estimate[chosen], truth[chosen])))
        for name, chosen in samples.items()
        if chosen.any()
    ]
    return Table(("sample", *_HEADER), tuple(rows), _EXPLAIN)


def _density(estimate: np.ndarray, known: np.ndarray) -> Figure:
    (low, high), (low_estimate, high_estimate) = figures.limits(known), figures.limits(estimate)
    bottom, top = min(low, low_estimate), max(high, high_estimate)
    bottom = 0.0 if bottom < 0.5 else bottom
    dz = metrics.scaled_residual(estimate, known)
    line = np.array([bottom, top])
    with figures.canvas(7.0, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        figures.density(left, known, estimate, (bottom, top, bottom, top))
        left.plot(line, line, color=INK, linewidth=0.8)
        for sign in (-1, 1):
            left.plot(
                line, line + sign * metrics.OUTLIER * (1 + line), color=ORANGE, linewidth=0.8, linestyle="--"
            )
        left.set(xlabel="known redshift", ylabel="posterior median", aspect="equal")
        reach = float(np.clip(6 * metrics.sigma_mad(dz), 0.05, 0.5))
        figures.density(right, known, dz, (bottom, top, -reach, reach))
        centres, values = figures.running(known, dz, np.linspace(bottom, top, 13))
        if centres.size:
            right.plot(centres, values[:, 1], color=ORANGE, label="median")
            right.plot(centres, values[:, [0, 2]], color=ORANGE, linewidth=0.9, linestyle=":")
            right.legend(loc="upper right")
        right.axhline(0, color=INK, linewidth=0.8)
        right.set(xlabel="known redshift", ylabel="Δz")
        return figures.encode(
            figure,
            "Left: posterior medians against known redshifts; dashed, the outlier limits |Δz| = 0.15. "
            "Right: residuals with their running median and 16 to 84 percent range (dotted); "
            "galaxies outside the frame are not drawn.",
            "Scatter of photometric against known redshifts.",
        )


def _magnitude_edges(magnitudes: np.ndarray) -> np.ndarray:
    finite = magnitudes[np.isfinite(magnitudes)]
    if finite.size == 0:
        return np.array([])
    low, high = np.floor(np.quantile(finite, 0.01)), np.ceil(np.quantile(finite, 0.99))
    step = 0.5 if high - low <= 4 else 1.0
    return np.arange(low, high + step / 2, step)


def _in_bins(
    estimate: np.ndarray, known: np.ndarray, by: np.ndarray, edges: np.ndarray, name: str, form: str
) -> Table:
    found = metrics.binned_point_metrics(estimate, known, by, edges)
    rows = tuple((f"{low:{form}} to {high:{form}}", *_cells(values)) for low, high, values in found)
    caption = f"In bins of {name}; bins with fewer than ten galaxies are left out."
    if by is known:
        # Readers take this slope for a fault, though any posterior has it where data are weak.
        caption += " Medians shrink towards the prior: a slope of the bias with known redshift is expected."
    return Table((name, *_HEADER), rows, caption)


def _calibration(pit: np.ndarray) -> Figure:
    pit = pit[np.isfinite(pit)]
    with figures.canvas(7.0, 2.9) as figure:
        left, right = figure.subplots(1, 2)
        counts, edges = np.histogram(pit, bins=20, range=(0, 1))
        expected = pit.size / 20
        left.stairs(counts, edges, fill=True, color=BLUE, alpha=0.45, zorder=1)
        left.axhline(expected, color=INK, linewidth=0.8)
        left.axhspan(
            expected - 2 * expected**0.5,
            expected + 2 * expected**0.5,
            color=GREY,
            alpha=0.3,
            linewidth=0,
            zorder=0,
        )
        left.set(xlabel="PIT: posterior CDF at the known redshift", ylabel="galaxies", xlim=(0, 1))
        levels = np.linspace(0, 1, 101)
        inside = np.searchsorted(np.sort(np.abs(2 * pit - 1)), levels, side="right") / max(pit.size, 1)
        right.plot(levels, inside, color=BLUE)
        right.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
        right.set(
            xlabel="probability of the central interval", ylabel="known redshifts inside", aspect="equal"
        )
        right.set(xlim=(0, 1), ylim=(0, 1))
        return figures.encode(
            figure,
            "Left: flat if posteriors are calibrated (grey: two sigma of counting); a U means too narrow, "
            f"a hump too wide. Kolmogorov-Smirnov distance from flat: {metrics.ks_uniform(pit):.3f}. "
            "Right: below the diagonal, intervals hold fewer known redshifts than they should.",
            "Histogram of PIT values and curve of interval coverage.",
        )


def _coverage_table(run: RunData, pit: np.ndarray, passed: np.ndarray) -> Table:
    """Coverage against what intervals between sample quantiles of n independent draws should hold."""
    draws = run.config["output"]["draws"]
    rows = [
        (
            f"{100 * probability:.0f} %",
            f"{probability * (draws - 1) / (draws + 1):.3f}",
            *(f"{metrics.coverage(part, probability):.3f}" for part in (pit, pit[passed])),
        )
        for probability in _COVERAGES
    ]
    caption = (
        "Fraction of known redshifts inside the posteriors' central intervals, with binomial errors. "
        f"Intervals between quantiles of {draws} draws hold a little less, even if all is well."
    )
    return Table(("interval", f"expected of {draws} draws", "all", "status OK"), tuple(rows), caption)
