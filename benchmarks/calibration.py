"""Calibration of a run on mocks: ranks of the truth among the draws, and coverage, for every parameter.

    popcosmos-hpc mock my_mock.yaml --out mock_catalog
    popcosmos-hpc plan my_run.yaml --run run --input mock_catalog
    popcosmos-hpc fit run
    python -m benchmarks.calibration run mock_catalog

Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788): among draws from the posterior, ranks of
the truth are uniform. Prints chi-square p-values over twenty bins and coverage of central 68 % intervals with
its binomial error, for all galaxies that were fitted, flagged ones included, and for those that are OK.
"""

from pathlib import Path

import click
import numpy as np
from scipy import stats

BINS = 20


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("mock", type=click.Path(path_type=Path, exists=True))
def main(run: Path, mock: Path) -> None:
    """Print the tables."""
    from popcosmos_hpc.errors import Status

    names, theta, truth, status = read(run, mock)
    groups = {"all that were fitted": np.isfinite(theta).all((1, 2)), "OK": status == Status.OK}
    for label, chosen in groups.items():
        click.echo(f"{label}: {chosen.sum()} of {len(status)}")
        rank, n_draws = np.sum(theta[chosen] < truth[chosen][:, None], axis=1), theta.shape[1]
        low, high = np.percentile(theta[chosen], [16, 84], axis=1)
        inside = np.mean((truth[chosen] > low) & (truth[chosen] < high), axis=0)
        error = np.sqrt(0.68 * 0.32 / chosen.sum())
        for index, name in enumerate(names):
            counts = np.bincount(rank[:, index] * BINS // (n_draws + 1), minlength=BINS)
            p = stats.chisquare(counts).pvalue
            mean = (rank[:, index].mean() + 0.5) / (n_draws + 1)
            held = f"68 % holds {inside[index]:.3f} +- {error:.3f}"
            click.echo(f"  {name:<16} p {p:7.4f}  {held}  mean rank {mean:.3f}")
    counts = {item.name: int(np.sum(status == item)) for item in Status}
    click.echo("status: " + ", ".join(f"{name} {count}" for name, count in counts.items() if count))


def read(run: Path, mock: Path):
    """Names of parameters, draws (galaxy, draw, param), truth (galaxy, param) and status (galaxy,)."""
    import lsdb
    import zarr

    from popcosmos_hpc.survey.plan import Plan
    from popcosmos_hpc.survey.posterior_store import read_posterior

    parts = Plan.read(run / "plan.parquet").partitions
    found = [read_posterior(run, part, ["object_id", "theta", "certificate"]) for part in parts]
    facts = dict(zarr.open_group(next((run / "posterior").rglob("Npix=*.zarr")), mode="r").attrs)
    names = list(facts["param"])
    columns = ["object_id", *(f"truth_{name}" for name in names)]
    table = lsdb.open_catalog(mock, columns=columns).compute().set_index("object_id")
    ids, certificate, theta = (
        np.concatenate([part[name] for part in found]) for name in ("object_id", "certificate", "theta")
    )
    done = ids >= 0  # of a run that is not finished, what there is
    ids, certificate, theta = ids[done], certificate[done], theta[done]
    truth = table.loc[ids, columns[1:]].to_numpy(float)
    status = certificate[:, list(facts["certificate"]).index("status")].astype(int)
    return names, theta, truth, status


if __name__ == "__main__":
    main()
