"""The tables of docs/performance.md about a run on galaxies with known redshifts.

    python -m benchmarks.photo_z_table RUN

Photometric redshifts of the secure classes, of all and of odd identifiers, whole and by redshift; coverage
of p(z); masses against published ones; status, effective sample size, evaluations, time; bytes per galaxy.
"""

from collections import Counter
from pathlib import Path

import click
import numpy as np

EDGES = np.array([0.0, 0.3, 0.6, 0.9, 2.0])


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
def main(run: Path) -> None:
    """Print the tables."""
    from popcosmos_hpc.errors import Status
    from popcosmos_hpc.report import metrics
    from popcosmos_hpc.report.run_data import read_run_data

    data = read_run_data(run)
    truth, estimate = data.truth["redshift"], data.median("redshift")
    name, secure = data.secure()
    odd = data.photometry["object_id"] % 2 == 1
    click.echo(f"{data.n_galaxies} galaxies; secure: {name}")
    for label, chosen in ((name, secure), ("odd", secure & odd), ("even", secure & ~odd)):
        _line(label, metrics.point_metrics(estimate[chosen], truth[chosen]))
        for low, high, found in metrics.binned_point_metrics(
            estimate[chosen], truth[chosen], truth[chosen], EDGES
        ):
            _line(f"{label} {low:g} < z < {high:g}", found)
    pit = metrics.pit_values(data.redshift_quantiles[secure], data.redshift_levels, truth[secure])
    for level in (0.5, 0.68, 0.9, 0.95):
        inside = metrics.coverage(pit, level)
        click.echo(f"coverage of {level}: {inside.value:.4f} +- {inside.error:.4f}")
    click.echo(f"PIT: KS distance {metrics.ks_uniform(pit):.4f}, mean {np.nanmean(pit):.4f}")
    _masses(data, secure, estimate, truth)
    status = Counter(Status(int(value)).name for value in data.certificate["status"])
    click.echo(f"status: {dict(status)}")
    for key in ("ess", "rhat", "n_evaluations"):
        if key in data.certificate:
            values = data.certificate[key].astype(float)
            click.echo(f"{key}: 10/50/90 % {np.nanpercentile(values, [10, 50, 90]).round(3)}")
    seconds = sum(record.seconds for record in data.done.values())
    click.echo(f"seconds per galaxy of one worker: {seconds / max(data.n_galaxies, 1):.3f}")
    _bytes(run, data.n_galaxies)


def _line(label: str, found) -> None:
    click.echo(
        f"{label:>28}: {found.n:6d}  bias {found.bias.value:+.4f} +- {found.bias.error:.4f}  sigma_MAD "
        f"{found.sigma_mad.value:.4f} +- {found.sigma_mad.error:.4f}  outliers "
        f"{100 * found.outliers.value:.2f} +- {100 * found.outliers.error:.2f} %"
    )


def _masses(data, secure: np.ndarray, estimate: np.ndarray, truth: np.ndarray) -> None:
    from popcosmos_hpc.report import metrics

    if "log10_mass" not in data.truth:
        return
    close = np.abs(estimate - truth) < 0.03 * (1 + truth)
    for label, chosen in (("secure", secure), ("redshift right to 0.03", secure & close)):
        n, offset, scatter = metrics.offset_and_scatter(
            data.median("log10_mass")[chosen], data.truth["log10_mass"][chosen]
        )
        click.echo(f"masses, {label}: {n}, offset {offset}, scatter {scatter}")


def _bytes(run: Path, n_galaxies: int) -> None:
    sizes: Counter[str] = Counter()
    for path in (run / "posterior").rglob("*"):
        if path.is_file():
            array = next((part for part in path.relative_to(run).parts if part in _ARRAYS), "metadata")
            sizes[array] += path.stat().st_size
    for array, size in sizes.most_common():
        click.echo(f"bytes per galaxy, {array}: {size / n_galaxies:.1f}")
    click.echo(f"bytes per galaxy, all: {sum(sizes.values()) / n_galaxies:.1f}")


_ARRAYS = (
    "theta",
    "log_prior",
    "log_likelihood",
    "summary",
    "redshift_quantiles",
    "certificate",
)

if __name__ == "__main__":
    main()
