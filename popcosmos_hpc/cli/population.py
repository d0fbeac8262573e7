# ruff: noqa: D301  (click reads the character \b before examples, so docstrings cannot be raw)
"""Verbs about populations."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group(short_help="Judge populations.")
def population() -> None:
    """Judge populations: priors, mock catalogs, tables of parameters."""


@population.command("report", short_help="Compare a population with published measurements.")
@click.argument("source")
@click.option("--out", type=_PATH, default=Path("population.html"), show_default=True, help="Page to write.")
@click.option("--bundle", default="kids9", show_default=True, help="Bundle that makes magnitudes.")
@click.option("--band", default="i", show_default=True, help="Band of the magnitude cuts.")
@click.option(
    "--draws", type=click.IntRange(min=1000), default=200_000, show_default=True, help="Draws of a prior."
)
@click.option(
    "--magnitude-limit", type=float, help="Faintest magnitude of the population, where it is known."
)
@click.option(
    "--compare", type=_PATH, multiple=True, help="Table of measured galaxies to show beside; repeatable."
)
def population_report(
    source: str,
    out: Path,
    bundle: str,
    band: str,
    draws: int,
    magnitude_limit: float | None,
    compare: tuple[Path, ...],
) -> None:
    """Compare a population with published measurements, on one HTML page.

    SOURCE is the name or folder of a population bundle, or a table with a column per parameter. Mass
    function, star-forming sequence, metallicities, AGN, cosmic star formation and redshifts are shown.

    \b
      popcosmos-hpc population report my_population --out population.html
      popcosmos-hpc population report draws.parquet --magnitude-limit 26
    """
    from popcosmos_hpc.report.population_page import write_population_report

    page = write_population_report(
        source,
        out,
        bundle=bundle,
        band=band,
        n_draws=draws,
        magnitude_limit=magnitude_limit,
        comparison=compare,
    )
    click.echo(f"report     {page}")
