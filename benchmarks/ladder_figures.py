"""The figures of the page on the ladder, from finished runs.

    python -m benchmarks.ladder_figures KiDS=run_kids Rubin=run_rubin --out docs/figures

Draws, run by run, which rung served galaxies of which magnitude, and how many effective draws each left with.
"""

from pathlib import Path

import click
import numpy as np

NAMES = {3: "pool", 4: "amplitude", 6: "SMC", 7: "SMC"}
ORDER = ("pool", "amplitude", "SMC", "not certified")


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/figures"), help="Folder.")
def main(runs: tuple[str, ...], out: Path) -> None:
    """Write ladder_rungs.svg; RUNS are NAME=FOLDER."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from popcosmos_hpc.report.figures import BLUE, GREEN, GREY, ORANGE
    from popcosmos_hpc.report.run_data import read_run_data

    colours = dict(zip(ORDER, (BLUE, GREEN, ORANGE, GREY), strict=True))
    found = {name: read_run_data(Path(folder)) for name, folder in (item.split("=", 1) for item in runs)}
    out.mkdir(parents=True, exist_ok=True)
    with rc_context({"font.size": 9, "svg.hashsalt": "popcosmos_hpc", "svg.fonttype": "path"}):
        figure = Figure(figsize=(3.2 * len(found), 5.2), layout="constrained")
        panels = np.asarray(figure.subplots(2, len(found), squeeze=False))
        for column, (name, run) in zip(panels.T, found.items(), strict=True):
            rung = rungs(run)
            _shares(column[0], run, rung, colours)
            column[0].set_title(f"{name}, {run.n_galaxies:,} galaxies")
            _sizes(column[1], run, rung, colours)
        panels[0, 0].set_ylabel("share of galaxies")
        panels[1, 0].set_ylabel("galaxies")
        panels[0, 0].legend(loc="lower left", fontsize=8)
        figure.savefig(out / "ladder_rungs.svg", metadata={"Date": None, "Creator": None})
    click.echo(f"{out / 'ladder_rungs.svg'}")


def rungs(run) -> np.ndarray:
    """Name of the rung (galaxy,) that each galaxy left from."""
    from popcosmos_hpc.errors import Status

    sampler, status = (run.certificate[name].astype(int) for name in ("sampler", "status"))
    named = np.array([NAMES.get(int(value), "not certified") for value in sampler])
    return np.where(status == Status.OK, named, "not certified")


def _shares(axes, run, rung: np.ndarray, colours: dict[str, str]) -> None:
    magnitude = run.reference_magnitude()
    known = np.isfinite(magnitude)
    edges = np.linspace(*np.quantile(magnitude[known], [0.005, 0.999]), 13)
    total = np.maximum(np.histogram(magnitude[known], edges)[0], 1)
    bottom = np.zeros(len(total))
    for name in ORDER:
        share = np.histogram(magnitude[known & (rung == name)], edges)[0] / total
        axes.bar(edges[:-1], share, np.diff(edges), bottom, align="edge", color=colours[name], label=name)
        bottom += share
    axes.set(xlabel=f"{run.reference_band} [AB mag]", ylim=(0, 1), xlim=(edges[0], edges[-1]))


def _sizes(axes, run, rung: np.ndarray, colours: dict[str, str]) -> None:
    ess = run.certificate["ess"].astype(float)
    bins = np.geomspace(10, 20_000, 40)
    known = [np.clip(ess[(rung == name) & np.isfinite(ess)], 10, 20_000) for name in ORDER]
    axes.hist(known, bins=list(bins), stacked=True, color=[colours[name] for name in ORDER])
    axes.set(xscale="log", xlabel="effective draws")


if __name__ == "__main__":
    main()
