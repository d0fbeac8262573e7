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


@click.command(short_help="Draw a mock catalog of any size.")
@click.argument("config")
@click.option("--out", type=_PATH, required=True, help="Catalog to make.")
@click.option("--galaxies", type=click.IntRange(min=1), help="Galaxies, instead of those in CONFIG.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["hats", "parquet"]),
    default="hats",
    show_default=True,
    help="A HATS catalog, or plain Parquet files.",
)
def mock(config: str, out: Path, galaxies: int | None, workers: int, file_format: str) -> None:
    """Draw a mock catalog of any size.

    Population, photometry, errors, noise and selection, with the true parameters in columns of their own.
    A galaxy depends on the seed and its index alone, and memory not on the number of galaxies. CONFIG is a
    YAML file or the name of a shipped one. After a stop, the same command goes on.

    \b
      popcosmos-hpc mock kids --galaxies 100000 --out mock_catalog
      popcosmos-hpc mock my_survey.yaml --out mock_catalog --workers 16
    """
    from popcosmos_hpc.campaign.cluster import open_client
    from popcosmos_hpc.campaign.mock_catalog import make_mock
    from popcosmos_hpc.campaign.mock_config import load_mock_config
    from popcosmos_hpc.config import ExecutorConfig

    settings = load_mock_config(config)
    if galaxies is not None:
        settings = settings.model_copy(update={"n_galaxies": galaxies})
    executor = ExecutorConfig(name="local" if workers > 1 else "serial", workers=workers)
    with open_client(executor) as client:
        result = make_mock(settings, out, client, "hats" if file_format == "hats" else "parquet")
    click.echo(
        f"{result.n_galaxies} galaxies of {result.n_candidates} drawn, in {result.n_partitions} files: "
        f"{result.catalog}"
    )
