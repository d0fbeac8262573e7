# ruff: noqa: D301  (click reads the character \b before examples, so docstrings cannot be raw)
"""Verbs for pools of prior draws."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group(short_help="Draw the prior's photometry once for all galaxies.")
def pool() -> None:
    """Pools of prior draws: the photometry of the population, computed once for all galaxies of a survey."""


@pool.command()
@click.argument("config")
@click.option("--out", type=_PATH, required=True, help="Folder to make.")
@click.option("--draws", type=click.IntRange(min=1000), help="Draws, instead of those in CONFIG.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
def build(config: str, out: Path, draws: int | None, workers: int) -> None:
    """Draw a pool and sort it into tiles.

    CONFIG is a YAML file or the name of a shipped one. Draw i depends on the seed and i alone. After a stop,
    the same command goes on.

    \b
      popcosmos-hpc pool build kids --draws 1000000 --out pool_kids --workers 2
    """
    from popcosmos_hpc.campaign.cluster import open_client
    from popcosmos_hpc.campaign.pool import build_survey_pool
    from popcosmos_hpc.campaign.pool_config import load_pool_config
    from popcosmos_hpc.config import ExecutorConfig

    settings = load_pool_config(config)
    if draws is not None:
        settings = settings.model_copy(update={"n_draws": draws})
    executor = ExecutorConfig(name="local" if workers > 1 else "serial", workers=workers)
    with open_client(executor) as client:
        store = build_survey_pool(settings, out, client)
    _describe(store)


@pool.command()
@click.argument("folder", type=_PATH)
def show(folder: Path) -> None:
    """Tell what a pool holds."""
    from popcosmos_hpc.survey.pool_store import open_pool

    _describe(open_pool(folder))


@pool.command()
@click.argument("folder", type=_PATH)
def verify(folder: Path) -> None:
    """Hash every file of a pool, and compare with its manifest."""
    from popcosmos_hpc.survey.pool_store import open_pool, verify_pool

    store = open_pool(folder)
    verify_pool(store)
    click.echo(f"{folder}: every file is as it was written")


@click.command(short_help="Measure what a run costs on this device.")
@click.argument("run", type=_PATH)
@click.option("--galaxies", type=click.IntRange(min=1), default=256, show_default=True, help="To fit.")
def bench(run: Path, galaxies: int) -> None:
    """Measure what a planned run costs on this device.

    Some galaxies of RUN are fitted, rung by rung, and nothing is written: galaxies per second, share
    certified, operations and bytes per second against what the device can do, and the cost of surveys.

    \b
      popcosmos-hpc bench run
    """
    from popcosmos_hpc.campaign.bench import bench_run, describe_bench

    click.echo(describe_bench(bench_run(run, galaxies)))


def _describe(store) -> None:
    facts = store.manifest
    click.echo(f"pool       {facts['name']} ({store.path})")
    click.echo(f"bands      {', '.join(store.bands)}")
    click.echo(f"draws      {facts['n_kept']} kept of {facts['n_drawn']} (seed {facts['seed']})")
    limit = facts["limit"]
    click.echo(f"limit      {limit['band']} < {limit['magnitude']}" if limit else "limit      none")
    click.echo(f"tiles      {facts['n_tiles']}")
    click.echo(f"memory     {store.nbytes / 1e9:.2f} GB")
    click.echo(f"bundle     {facts['identity']['bundle']}")
    click.echo(f"prior      {facts['identity']['prior']}")
    click.echo(f"sha256     {store.sha256}")
