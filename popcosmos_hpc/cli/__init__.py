# ruff: noqa: D301  (click reads the character \b before examples, so docstrings cannot be raw)
"""The command `popcosmos-hpc`: one verb per step. Verbs import what they need, so that help is instant."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from popcosmos_hpc.cli.models import bundle, train
from popcosmos_hpc.cli.pool import bench, pool
from popcosmos_hpc.cli.population import mock, population
from popcosmos_hpc.errors import PopCosmosError

FAILED_BLOCKS, WRONG_USAGE, INTERRUPTED = 1, 2, 3
_PATH = click.Path(path_type=Path)
_RUN = click.argument("run", type=_PATH)


class Commands(click.Group):
    """A group whose errors are one readable message and an exit code that scripts can use."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except PopCosmosError as error:
            click.echo(f"popcosmos-hpc: {error}", err=True)
            ctx.exit(WRONG_USAGE)
        except KeyboardInterrupt:
            click.echo("popcosmos-hpc: interrupted; the same command goes on.", err=True)
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which they are used."""
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="popcosmos-hpc")
@click.option("-v", "--verbose", is_flag=True, help="Say more, with tracebacks of failed attempts.")
def main(verbose: bool) -> None:
    """Stellar-population posteriors of a galaxy survey, on a laptop or a cluster.

    \b
    A whole run:
      popcosmos-hpc ingest table.fits --preset my_survey.yaml --out catalog
      popcosmos-hpc plan my_run.yaml --run run
      popcosmos-hpc fit run            # stop it with Ctrl-C; the same command goes on
      popcosmos-hpc export run
      popcosmos-hpc report run
    To see all of it on a mock survey, in a few minutes:
      popcosmos-hpc demo

    Exit codes: 0 done; 1 some blocks failed; 2 wrong usage, configuration or input; 3 interrupted.
    """
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("popcosmos_hpc").setLevel(logging.DEBUG if verbose else logging.INFO)
    # Dask reports as errors what our own retries handle; it reads this when it is imported.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning" if verbose else "critical")


@main.command()
@click.option("--out", type=_PATH, default=Path("demo_run"), show_default=True, help="Run directory to make.")
@click.option("--config", default="demo", show_default=True, help="Run configuration: name or YAML file.")
@click.option("--galaxies", type=click.IntRange(min=1), help="Galaxies of the mock survey.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.")
def demo(out: Path, config: str, galaxies: int | None, workers: int | None) -> None:
    """Run every step on a mock survey.

    Mock survey -> catalog -> plan -> fit -> export -> report, in one run directory.

    \b
    Run it again after an interruption: finished steps are kept.
      popcosmos-hpc demo --out demo_run
    """
    from popcosmos_hpc.campaign.demo import run_demo

    result = run_demo(out, config, galaxies, workers)
    if result.exit_code:
        _end_of_fit(out, result)
    from popcosmos_hpc.report.page import write_report

    page = write_report(out)
    click.echo(f"\n{_status_text(out)}\nreport     {page}")


@main.command()
@click.argument("tables", nargs=-1, required=True, type=_PATH)
@click.option("--preset", required=True, help="Survey preset: name or YAML file.")
@click.option("--out", required=True, type=_PATH, help="HATS catalog to make.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option(
    "--max-rows", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Rows per partition."
)
@click.option(
    "--highest-order",
    type=click.IntRange(0, 13),
    default=8,
    show_default=True,
    help="HEALPix order that no partition is finer than.",
)
def ingest(
    tables: tuple[Path, ...], preset: str, out: Path, workers: int, max_rows: int, highest_order: int
) -> None:
    """Read tables into a HATS catalog.

    FITS, Parquet, CSV and HDF5 are read through a preset, which says what the columns mean. Rows that
    cannot be used are written to rejects, each with its reason; kept + rejected = in.

    \b
      popcosmos-hpc ingest kids_*.fits --preset kids_mock --out catalog
    """
    from popcosmos_hpc.campaign.cluster import open_client
    from popcosmos_hpc.campaign.ingest import ingest as run_ingest
    from popcosmos_hpc.config import ExecutorConfig

    executor = ExecutorConfig(name="local" if workers > 1 else "serial", workers=workers)
    with open_client(executor) as client:
        result = run_ingest(list(tables), preset, out, client, max_rows=max_rows, highest_order=highest_order)
    click.echo(f"{result.n_in} rows: {result.n_kept} kept in {out}, {result.n_rejected} rejected")
    for reason, count in result.reasons.items():
        click.echo(f"  {count} x {reason}")


@main.command()
@click.argument("config")
@click.option("--run", "run_dir", required=True, type=_PATH, help="Run directory to make.")
@click.option("--input", "catalog", type=_PATH, help="Catalog to fit, instead of the one in CONFIG.")
def plan(config: str, run_dir: Path, catalog: Path | None) -> None:
    """Make a run directory from a catalog.

    The catalog is divided into partitions on the sky and blocks of work. CONFIG is a YAML file or the name
    of a shipped one. Nothing is fitted yet, but every setting is checked.

    \b
      popcosmos-hpc plan my_run.yaml --run run
      popcosmos-hpc plan zcosmos --run run --input catalog
    """
    from popcosmos_hpc.campaign.prepare import plan_run
    from popcosmos_hpc.config import load_config

    result = plan_run(load_config(config).with_input(catalog), run_dir)
    click.echo(
        f"{result.n_galaxies} galaxies in {len(result.partitions)} partitions and "
        f"{len(result.blocks())} blocks.\nFit them with: popcosmos-hpc fit {run_dir}"
    )


@main.command()
@_RUN
@click.option(
    "--executor", type=click.Choice(["serial", "local"]), help="Where to run; results are the same."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes on this machine.")
@click.option("--retry-failed", is_flag=True, help="Try blocks again that were set aside.")
@click.option("--accept-code-change", is_flag=True, help="Go on although the package's source changed.")
def fit(
    run: Path, executor: str | None, workers: int | None, retry_failed: bool, accept_code_change: bool
) -> None:
    """Fit every block that has no record yet.

    Stop it as you like, by Ctrl-C, a kill or a power cut: the same command goes on, with the same results.

    \b
      popcosmos-hpc fit run
      popcosmos-hpc fit run --workers 8
      popcosmos-hpc fit run --retry-failed
    """
    from popcosmos_hpc.campaign.run import run_campaign, with_overrides
    from popcosmos_hpc.campaign.worker import read_run

    settings = with_overrides(read_run(run), executor, workers)
    result = run_campaign(run, settings, retry_failed, accept_code_change)
    if result.exit_code == 0 and read_run(run).audit.fraction > 0.0:
        _audit(run, None, ())
    _end_of_fit(run, result)


def _audit(run: Path, fraction: float | None, samplers: tuple[str, ...]) -> None:
    from popcosmos_hpc.campaign.audit import run_audit

    n_fits = run_audit(run, fraction, samplers, lambda text: click.echo(text, err=True))
    click.echo(f"audit      {n_fits} galaxies fitted again")


def _end_of_fit(run: Path, result: Any) -> None:
    click.echo(_status_text(run))
    if result.interrupted:
        click.echo(f"Stopped. Go on with: popcosmos-hpc fit {run}", err=True)
    elif result.exit_code:
        click.echo(f"{result.failed} blocks failed, {result.left} not tried.", err=True)
    if result.exit_code:
        click.get_current_context().exit(result.exit_code)


def _status_text(run: Path) -> str:
    from popcosmos_hpc.campaign.status import campaign_status

    return campaign_status(run).text()


@main.command()
@_RUN
def status(run: Path) -> None:
    """Tell what is done, failed and left.

    And how fast it goes, and when it should end. It only reads, so it may be used at any time, from any
    machine that sees the run directory.

    \b
      popcosmos-hpc status run
      watch -n 60 popcosmos-hpc status run
    """
    click.echo(_status_text(run))


@main.command()
@_RUN
@click.option(
    "--fraction", type=click.FloatRange(0, 1), help="Of all galaxies, instead of the run's setting."
)
@click.option(
    "--sampler", "samplers", multiple=True, help="nuts, ensemble, smc or exhaustive; default: the run's."
)
def audit(run: Path, fraction: float | None, samplers: tuple[str, ...]) -> None:
    """Fit a random fraction of the galaxies again, by other samplers.

    The report compares the answers. The run itself is not changed. `fit` does this at its end if `audit` in
    the configuration says so.

    \b
      popcosmos-hpc audit run
      popcosmos-hpc audit run --fraction 0.01 --sampler nuts
    """
    _audit(run, fraction, samplers)


@main.command()
@_RUN
@click.option("--out", type=_PATH, help="HATS catalog to make; default: catalog/ in the run directory.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
def export(run: Path, out: Path | None, workers: int) -> None:
    """Write summaries as a HATS catalog.

    LSDB opens it; rows that are not fitted yet are marked.

    \b
      popcosmos-hpc export run
    """
    from popcosmos_hpc.campaign.cluster import open_client
    from popcosmos_hpc.campaign.export import export as run_export
    from popcosmos_hpc.config import ExecutorConfig

    executor = ExecutorConfig(name="local" if workers > 1 else "serial", workers=workers)
    with open_client(executor) as client:
        run_export(run, out, client)
    click.echo(f"catalog    {out or run / 'catalog'}")


@main.command()
@_RUN
@click.option("--out", type=_PATH, help="HTML file to write; default: report.html in the run directory.")
@click.option("--truth", type=_PATH, help="Parquet table of object_id and known values.")
def report(run: Path, out: Path | None, truth: Path | None) -> None:
    """Judge a run on one HTML page.

    The run need not be finished, and the page needs nothing but itself.

    \b
      popcosmos-hpc report run
      popcosmos-hpc report run --truth spectroscopic.parquet
    """
    from popcosmos_hpc.report.page import write_report

    click.echo(f"report     {write_report(run, out, truth)}")


main.add_command(mock)
main.add_command(pool)
main.add_command(bench)
main.add_command(train)
main.add_command(population)
main.add_command(bundle)
