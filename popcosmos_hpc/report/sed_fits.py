"""Example galaxies: their data against what their posteriors predict for the same bands."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from popcosmos_hpc.campaign.worker import build_worker
from popcosmos_hpc.errors import PopCosmosError, Status
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.report import figures
from popcosmos_hpc.report.figures import BLUE, GREY, INK, ORANGE
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import Figure, Section, Table, Text, in_words
from popcosmos_hpc.survey.posterior_store import read_posterior

_ORDINARY, _POOR = 4, 2


class _Example(NamedTuple):
    row: int
    why: str
    theta: np.ndarray  # (draw, param)
    predicted: np.ndarray  # (draw, band) nanomaggies
    sigma: np.ndarray  # (band,) nanomaggies: the likelihood's own scatter about the prediction


def sed_fits_section(run: RunData) -> Section:
    """Fits of a few ordinary galaxies and of the poorest, with residuals; a note where the model is gone."""
    title = ("fits", "Example fits")
    try:
        worker = build_worker(run.run_dir)
    except PopCosmosError as error:
        return Section(
            *title, (Text(f"The run's model could not be loaded, so no fits are drawn. {error}", "note"),)
        )
    examples = [_predict(run, worker.model, row, why) for row, why in choose(run)]
    if not examples:
        return Section(*title, (Text("No galaxy has draws: there are no fits to show.", "note"),))
    bands = [run.bands.index(band) for band in worker.model.bands]
    waves = _wavelengths(run, worker.model.bands)
    return Section(
        *title, (_draw(run, worker.model, examples, bands, waves), _residuals(run, worker.model, bands))
    )


def choose(run: RunData) -> list[tuple[int, str]]:
    """Rows to show: fitted galaxies spread in magnitude, then those of the lowest posterior-predictive p."""
    ppp, status = run.certificate["ppp"], run.certificate["status"]
    fitted = np.flatnonzero(np.isfinite(run.summary[:, 0, 2]))
    good = fitted[status[fitted] == Status.OK]
    magnitude = np.nan_to_num(run.reference_magnitude(), nan=99.0)
    ordered = good[np.argsort(magnitude[good], kind="stable")]
    places = (
        np.unique(np.linspace(0.05, 0.85, _ORDINARY) * (len(ordered) - 1)).astype(int) if len(ordered) else []
    )
    chosen = [(int(ordered[place]), "") for place in places]
    taken = {row for row, _ in chosen}
    poorest = fitted[np.argsort(np.nan_to_num(ppp[fitted], nan=2.0), kind="stable")]
    poor = [(int(row), "of the poorest fits") for row in poorest if int(row) not in taken]
    return chosen + poor[:_POOR]


def _theta(run: RunData, row: int) -> np.ndarray:
    start = 0
    for block in run.blocks:
        if row < start + block.n_galaxies:
            place = block.start + row - start
            return read_posterior(run.run_dir, block.partition, ["theta"], place, place + 1)["theta"][0]
        start += block.n_galaxies
    raise IndexError(row)


@eqx.filter_jit
def _moments(model: GalaxyModel, theta: jax.Array):
    return jax.vmap(model.moments)(theta)


def _predict(run: RunData, model: GalaxyModel, row: int, why: str) -> _Example:
    theta = _theta(run, row)
    predicted, variance = _moments(model, jnp.asarray(theta))
    return _Example(row, why, theta, np.asarray(predicted), np.sqrt(np.median(np.asarray(variance), axis=0)))


def _wavelengths(run: RunData, bands: tuple[str, ...]) -> np.ndarray | None:
    """Pivot wavelengths [micron] if the bundle knows all of them."""
    filters = load_bundle(run.config["model"]["bundle"]).manifest.get("filters", {})
    pivots = [filters.get(band, {}).get("pivot") for band in bands]
    return None if None in pivots else np.array(pivots, float) / 1e4


def _draw(run: RunData, model: GalaxyModel, examples: list[_Example], bands: list[int], waves) -> Figure:
    rows = -(-len(examples) // 2)
    with figures.canvas(7.2, 2.25 * rows) as figure:
        grid = figure.subplots(rows, 4, width_ratios=[3, 1, 3, 1], squeeze=False)
        for axes in grid.ravel():
            axes.set_visible(False)
        for index, example in enumerate(examples):
            left, right = grid[index // 2, 2 * (index % 2) :][:2]
            _spectrum(left, run, model, example, bands, waves)
            _redshift(right, run, model, example)
        return figures.encode(
            figure,
            "Observed fluxes (dark, one sigma; arrows, upper limits; a flux below zero is drawn as an arrow "
            "at two sigma) and the posterior's photometry (blue, 16 to 84 and 2.5 to 97.5 percent; zero "
            "points included). To the right, the histogram of its redshift draws; orange, the known one.",
            "Observed and predicted photometry of example galaxies.",
        )


def _spectrum(
    axes: Axes, run: RunData, model: GalaxyModel, example: _Example, bands: list[int], waves
) -> None:
    axes.set_visible(True)
    flux, error, state = (
        run.photometry[name][example.row, bands].astype(float) for name in ("flux", "flux_err", "state")
    )
    x = np.arange(len(bands), dtype=float) if waves is None else waves
    low2, low, middle, high, high2 = np.quantile(example.predicted, (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
    axes.vlines(x, low2, high2, color=BLUE, linewidth=4, alpha=0.25)
    axes.vlines(x, low, high, color=BLUE, linewidth=4, alpha=0.6)
    order = np.argsort(x)
    axes.plot(x[order], np.where(middle > 0, middle, np.nan)[order], color=BLUE, linewidth=0.6, alpha=0.7)
    seen = (state == BandState.OBSERVED) & (flux > 0)
    axes.errorbar(
        x[seen],
        flux[seen],
        np.minimum(error[seen], 0.95 * flux[seen]),
        fmt="o",
        color=INK,
        markersize=3,
        elinewidth=0.9,
    )
    upper = np.where(state == BandState.LIMIT, flux, 2 * error)
    dark = ((state == BandState.OBSERVED) & (flux <= 0)) | (state == BandState.LIMIT)
    axes.scatter(x[dark], upper[dark], marker="v", s=14, color=INK, linewidths=0)
    _scale(axes, np.concatenate([middle, flux[seen], upper[dark]]), waves is not None)
    if waves is None:
        axes.set_xticks(x, model.bands, rotation=60 if len(bands) > 8 else 0, fontsize=7)
    else:
        axes.set_xlabel("wavelength (micron)")
        ticks = [
            tick
            for tick in (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8)
            if x.min() * 0.85 < tick < x.max() * 1.2
        ]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    status = Status(int(run.certificate["status"][example.row]))
    note = f" ({example.why})" if example.why else ""
    object_id = run.photometry["object_id"][example.row]
    axes.set_title(
        f"{object_id}\n{in_words(status)}, ppp {run.certificate['ppp'][example.row]:.2g}{note}",
        fontsize=7.5,
        loc="left",
    )
    axes.set_ylabel("flux (nanomaggies)")


def _scale(axes: Axes, values: np.ndarray, log_x: bool) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    if values.size:
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 2.2, values.max() * 2.2)
        figures.plain_log_ticks(axes.yaxis)
    if log_x:
        axes.set_xscale("log")


def _redshift(axes: Axes, run: RunData, model: GalaxyModel, example: _Example) -> None:
    if "redshift" not in model.space.names:
        return
    axes.set_visible(True)
    draws = example.theta[:, model.space.index("redshift")]
    low, high = figures.limits(draws, 0.0, 0.15)
    axes.hist(draws, bins=25, range=(low, high), color=GREY, alpha=0.8)
    known = run.truth.get("redshift")
    if known is not None and np.isfinite(known[example.row]):
        axes.axvline(known[example.row], color=ORANGE, linewidth=1.2)
        axes.set_xlim(min(low, known[example.row] - 0.02), max(high, known[example.row] + 0.02))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("redshift")
    figures.few_ticks(axes.xaxis)


def _residuals(run: RunData, model: GalaxyModel, bands: list[int]) -> Table:
    """Per band, over a sample of galaxies: data against the prediction of one posterior draw."""
    rows_of = np.flatnonzero((run.certificate["status"] == Status.OK) & np.isfinite(run.summary[:, 0, 2]))
    sample = rows_of[:: max(1, len(rows_of) // 200)][:200]
    theta = (
        np.stack([_theta(run, int(row))[0] for row in sample])
        if len(sample)
        else np.zeros((0, model.space.size))
    )
    if not len(sample):
        return Table(("band",), (), "No galaxy passed its checks.")
    predicted, variance = (
        np.asarray(part, float) for part in _moments(model, jnp.asarray(theta, jnp.float32))
    )
    flux, error, state = (
        run.photometry[name][sample][:, bands].astype(float) for name in ("flux", "flux_err", "state")
    )
    rows = []
    for index, band in enumerate(model.bands):
        seen = state[:, index] == BandState.OBSERVED
        if not seen.any():
            rows.append((band, "0", "n/a", "n/a", "n/a"))
            continue
        data, model_flux = flux[seen, index], predicted[seen, index]
        pull = (data - model_flux) / np.sqrt(error[seen, index] ** 2 + variance[seen, index])
        ratio = np.nanmedian(data / np.where(model_flux > 0, model_flux, np.nan))
        width = float(np.diff(np.quantile(pull, (0.16, 0.84)))[0] / 2)
        rows.append((band, f"{seen.sum():,}", f"{ratio:.3f}", f"{np.median(pull):+.2f}", f"{width:.2f}"))
    return Table(
        ("band", "galaxies", "median data / model", "median pull", "half-width of pulls"),
        tuple(rows),
        f"Over {len(sample)} galaxies that passed, one posterior draw each. A pull is (data - model) / "
        "sigma, with the error floor and the emulator's error in sigma. "
        "A ratio away from 1 hints at a zero point.",
    )
