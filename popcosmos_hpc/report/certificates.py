"""Whether the posteriors can be trusted: statuses, and the distributions of their certificates."""

from typing import NamedTuple

import numpy as np

from popcosmos_hpc.errors import Status
from popcosmos_hpc.report import figures
from popcosmos_hpc.report.figures import BLUE, ORANGE
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import Figure, Section, Table, Text, number, percent


class _Check(NamedTuple):
    column: str
    title: str
    threshold: float
    bad_above: bool
    logarithmic: bool


_CHECKS = (
    _Check("ess", "effective draws", 100.0, False, True),
    _Check("rhat", "R-hat - 1", 0.1, True, True),
    _Check("ppp", "posterior-predictive p", 0.001, False, False),
    _Check("pareto_k", "Pareto k", 0.7, True, False),
    _Check("max_weight", "largest weight", 0.05, True, True),
    _Check("log_evidence_error", "error of ln Z", 0.15, True, True),
    _Check("acceptance", "acceptance", 0.1, False, False),
    _Check("n_evaluations", "emulator evaluations", np.inf, True, True),
)
_SAMPLERS = {
    -1: "none",
    0: "ensemble",
    1: "SMC",
    2: "NUTS",
    3: "pool",
    4: "pool, amplitude drawn anew",
    5: "pool, all of it",
    6: "SMC from the pool",
    7: "SMC from the pool, amplitude integrated out",
}


def certificates_section(run: RunData) -> Section:
    """Counts of statuses, thresholds, and a histogram of every certificate that the sampler gives."""
    blocks: list[Figure | Table | Text] = [_statuses(run), _samplers(run)]
    known = [check for check in _CHECKS if check.column in run.certificate]
    given = [check for check in known if np.isfinite(_values(run, check)).any()]
    if given:
        blocks += [_thresholds(run, given), _histograms(run, given)]
    else:
        blocks.append(Text("No galaxy has been fitted yet: there are no certificates.", "note"))
    return Section("certificates", "Certificates", tuple(blocks))


def status_counts(run: RunData) -> dict[Status, int]:
    """How many galaxies have each status that occurs."""
    values, counts = np.unique(run.certificate["status"].astype(int), return_counts=True)
    return {Status(int(value)): int(count) for value, count in zip(values, counts, strict=True)}


def _statuses(run: RunData) -> Table:
    total = run.n_galaxies
    rows = tuple(
        (status.name, f"{count:,}", percent(count, total), status.sentence)
        for status, count in status_counts(run).items()
    )
    return Table(("status", "galaxies", "fraction", "meaning"), rows)


def _samplers(run: RunData) -> Table:
    """Which sampler made the draws, and how many of its galaxies passed."""
    sampler, passed = run.certificate["sampler"].astype(int), run.certificate["status"] == Status.OK
    rows = []
    for value in np.unique(sampler):
        mine = sampler == value
        name = _SAMPLERS.get(int(value), str(value))
        rows.append((name, f"{mine.sum():,}", percent(mine.sum(), len(sampler)), f"{passed[mine].sum():,}"))
    return Table(("draws from", "galaxies", "fraction", "status OK"), tuple(rows))


def _values(run: RunData, check: _Check) -> np.ndarray:
    """Values of a certificate; NaN for galaxies that do not have it."""
    values = run.certificate[check.column].astype(float)
    if check.column == "n_evaluations":
        return np.where(values > 0, values, np.nan)
    return values - 1 if check.column == "rhat" else values


def _thresholds(run: RunData, checks: list[_Check]) -> Table:
    rows = []
    for check in checks:
        values = _values(run, check)
        values = values[np.isfinite(values)]
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        bad = values > check.threshold if check.bad_above else values < check.threshold
        sign = "above" if check.bad_above else "below"
        limit = (
            f"{percent(bad.sum(), values.size)} {sign} {check.threshold:g}"
            if np.isfinite(check.threshold)
            else ""
        )
        rows.append((check.title, f"{values.size:,}", number(low), number(middle), number(high), limit))
    header = ("certificate", "galaxies", "5 %", "median", "95 %", "look twice")
    return Table(header, tuple(rows), "Quantiles over galaxies that have the certificate.")


def _histograms(run: RunData, checks: list[_Check]) -> Figure:
    rows = (len(checks) + 2) // 3
    with figures.canvas(7.0, 2.1 * rows) as figure:
        panels = np.atleast_1d(figure.subplots(rows, 3)).ravel()
        for axes, check in zip(panels, checks, strict=False):
            _histogram(axes, _values(run, check), check)
        for axes in panels[len(checks) :]:
            axes.set_axis_off()
        return figures.encode(
            figure,
            "Distributions over galaxies; dashed, the value beyond which to look twice. A pile of "
            "posterior-predictive p at 0 means that data scatter more than model and errors allow; "
            "at 1, that errors are overestimated.",
            "Histograms of effective draws, R-hat, posterior-predictive p and other certificates.",
        )


def _histogram(axes, values: np.ndarray, check: _Check) -> None:
    values = values[np.isfinite(values)]
    if check.column in ("ppp", "acceptance"):
        bins = np.linspace(0, 1, 26)
    elif check.logarithmic:
        values = np.maximum(values, 1e-4)
        low, high = np.quantile(values, (0.001, 0.999))
        bins = np.geomspace(low / 1.05, high * 1.05, 30)
        axes.set_xscale("log")
    else:
        bins = np.linspace(*figures.limits(values), 30)
    axes.hist(values, bins=bins, color=BLUE, alpha=0.7)
    if np.isfinite(check.threshold) and bins[0] <= check.threshold <= bins[-1]:
        axes.axvline(check.threshold, color=ORANGE, linestyle="--", linewidth=1)
    if check.logarithmic:
        figures.plain_log_ticks(axes.xaxis)
    axes.set(xlabel=check.title, ylabel="galaxies")
