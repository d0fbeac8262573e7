# ruff: noqa: D301  (click reads the character \b before examples, so docstrings cannot be raw)
"""Verbs that make models and look at them."""

from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)
_STATES = click.option(
    "--checkpoint-dir", type=_PATH, help="Where training states are kept; default: beside the bundle."
)


@click.group(short_help="Make models for other bands, or calibrate.")
def train() -> None:
    """Make models for other bands or physics, and find a survey's zero points."""


@train.command("emulator", short_help="Train an emulator and write its bundle.")
@click.argument("configs", type=_PATH, nargs=-1, required=True, metavar="CONFIG...")
@click.option(
    "--out",
    type=_PATH,
    help="Bundle folder to make, or folder of the bundles of several; default: the configuration's name.",
)
@_STATES
def train_emulator(configs: tuple[Path, ...], out: Path | None, checkpoint_dir: Path | None) -> None:
    """Train the emulators of training configurations and write their bundles.

    Several configurations must agree in all but name, bands and network of the continuum; they then learn
    from the same draws, whose spectra are made once.

    How long that takes is said in CONFIG. After a stop, the same command goes on from its checkpoints.

    \b
      popcosmos-hpc train emulator configs/training/kids9.yaml --out my_bundle
    """
    from popcosmos_hpc.training.emulator import train_together

    if len(configs) == 1:
        targets = [out or Path(configs[0].stem)]
    else:
        targets = [(out or Path()) / config.stem for config in configs]
    states = checkpoint_dir or targets[0].with_name(f"{targets[0].name}.checkpoints")
    for target in train_together(configs, targets, states):
        click.echo(f"bundle     {target}")


@train.command("uncertainty", short_help="Train a model of a survey's flux errors.")
@click.argument("config", type=_PATH)
@click.option("--out", type=_PATH, help="Bundle folder to make; default: the configuration's name.")
@click.option(
    "--checkpoint-dir", type=_PATH, help="Where training states are kept; default: beside the bundle."
)
def train_uncertainty(config: Path, out: Path | None, checkpoint_dir: Path | None) -> None:
    """Train the uncertainty model of a training configuration and write its bundle.

    It learns the flux errors of all bands together, given the fluxes: from the rows of a survey's table that
    have every band, or from a survey simulated with published formulae. After a stop, the same command goes
    on from its checkpoint.

    \b
      popcosmos-hpc train uncertainty configs/training/noise_zcosmos.yaml --out my_errors
    """
    from popcosmos_hpc.training.noise import train_uncertainty_from_config

    target = out or Path(config.stem)
    states = checkpoint_dir or target.with_name(f"{target.name}.checkpoints")
    click.echo(f"bundle     {train_uncertainty_from_config(config, target, states)}")


@train.command("zero-points", short_help="Solve for zero points at known redshifts.")
@click.argument("config")
@click.option("--input", "catalog", type=_PATH, help="Catalog to use, instead of the one in CONFIG.")
@click.option("--redshift-column", default="redshift_spec", show_default=True, help="Known redshifts.")
@click.option("--where", help="Rows to use: an expression over the catalog's columns.")
@click.option(
    "--even-ids/--all",
    default=True,
    show_default=True,
    help="Use even identifiers only, so that the odd ones can judge the result.",
)
@click.option("--reference", required=True, help="Band whose zero point stays 1.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=2, show_default=True, help="Rounds; more than two drift."
)
@click.option(
    "--galaxies",
    type=click.IntRange(min=30),
    default=1500,
    show_default=True,
    help="Most galaxies, by chance.",
)
@click.option(
    "--spectra", type=click.IntRange(min=2), default=4096, show_default=True, help="Spectra per galaxy."
)
@click.option("--out", type=_PATH, help="YAML file to write.")
def train_zero_points(
    config: str,
    catalog: Path | None,
    reference: str,
    rounds: int,
    spectra: int,
    out: Path | None,
    **sample: Any,
) -> None:
    """Solve for zero points at known redshifts.

    Each galaxy is compared with many spectra of the prior at its own redshift. The outcome, one factor on
    the model's flux per band, goes into model.likelihood.zero_points of CONFIG, a run's configuration. Its
    bundle, prior, error floors and seed are used.

    \b
      popcosmos-hpc train zero-points zcosmos --input catalog --reference i \\
        --where "redshift_class >= 3 and redshift_class < 5" --out zero_points.yaml
    """
    from popcosmos_hpc.config import load_config
    from popcosmos_hpc.training import zero_points

    settings = load_config(config).with_input(catalog)
    chosen = zero_points.CalibrationSample(max_galaxies=sample.pop("galaxies"), **sample)
    found = zero_points.calibrate(settings, chosen, reference, rounds, spectra)
    click.echo(zero_points.zero_points_yaml(found, reference), nl=False)
    if out is not None:
        zero_points.write_zero_points(found, reference, out)


@train.command("prior", short_help="Train a population on parameter draws.")
@click.argument("config", type=_PATH)
@click.option("--draws", type=_PATH, required=True, help="Parquet table with a column per parameter.")
@click.option("--out", type=_PATH, help="Bundle folder to make; default: the configuration's name.")
@_STATES
def train_prior(config: Path, draws: Path, out: Path | None, checkpoint_dir: Path | None) -> None:
    """Train a diffusion prior on parameter draws, by score matching.

    The draws may be a published mock catalog, posterior draws, or those of a simulation. The bundle holds
    how well the prior's own draws agree with held-out ones. After a stop, the same command goes on.

    \b
      popcosmos-hpc train prior configs/training/reference.yaml --draws draws.parquet --out population
    """
    from popcosmos_hpc.parameters import POP_COSMOS
    from popcosmos_hpc.training.prior import load_prior_recipe, read_draws, train_prior_bundle

    target = out or Path(config.stem)
    states = checkpoint_dir or target.with_name(f"{target.name}.checkpoints")
    recipe = load_prior_recipe(config)
    theta = read_draws(draws, POP_COSMOS)
    click.echo(f"population {train_prior_bundle(theta, POP_COSMOS, recipe, target, states)}")


@train.command("population", short_help="Train a population on photometry.")
@click.argument("config", type=_PATH)
@click.option("--input", "catalog", type=_PATH, help="Catalog to use, instead of the one in CONFIG.")
@click.option("--out", type=_PATH, help="Bundle folder to make; default: the configuration's name.")
@_STATES
def train_population(
    config: Path, catalog: Path | None, out: Path | None, checkpoint_dir: Path | None
) -> None:
    """Train a population on the photometry of a catalog; no redshift is used.

    Mock galaxies of the population, with the survey's noise and selection, are brought to agree with the
    observed ones by optimal transport. After a stop, the same command goes on.

    \b
      popcosmos-hpc train population configs/training/zcosmos_population.yaml --input catalog --out population
    """
    from popcosmos_hpc.training.population_recipe import load_population_recipe, train_population_bundle

    target = out or Path(config.stem)
    states = checkpoint_dir or target.with_name(f"{target.name}.checkpoints")
    recipe = load_population_recipe(config)
    if catalog is not None:
        recipe = recipe.model_copy(update={"input": str(catalog)})
    click.echo(f"population {train_population_bundle(recipe, target, states)}")


@train.command("student", short_help="Train a fast student of a population.")
@click.argument("teacher")
@click.option(
    "--kind",
    type=click.Choice(["flow", "map", "amplitude"]),
    required=True,
    help="A flow, which has a density; a one-step map of base draws; or the density of N given the rest.",
)
@click.option("--out", type=_PATH, required=True, help="Bundle folder to make.")
@click.option("--config", type=_PATH, help="Training configuration; default: the recipe's own defaults.")
@_STATES
def train_student(
    teacher: str, kind: Any, out: Path, config: Path | None, checkpoint_dir: Path | None
) -> None:
    """Train a fast student of a population, and measure how far it is from it.

    TEACHER is the name of a shipped population, or a folder. What was measured is printed and goes into the
    bundle, which refuses uses for which the student is not accurate enough. After a stop, the same command
    goes on from its checkpoint.

    \b
      popcosmos-hpc train student my_population --kind flow --out my_flow
    """
    from popcosmos_hpc.training.prior_student import train_student_bundle
    from popcosmos_hpc.training.student_recipe import RECIPES, load_student_recipe

    states = checkpoint_dir or out.with_name(f"{out.name}.checkpoints")
    recipe = (
        RECIPES[kind].model_validate({"name": out.name})
        if config is None
        else load_student_recipe(config, kind)
    )
    path, student = train_student_bundle(teacher, kind, recipe, out, states)
    click.echo(f"bundle     {path}")
    for name, value, error in student.accuracy:
        click.echo(f"accuracy   {name} {value:.4g} +- {error:.2g}")
    click.echo(f"good for   {', '.join(student.uses()) or 'none of its uses: train it longer'}")


@click.group()
def bundle() -> None:
    """Look at models, and convert those of others."""


@bundle.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest.")
def bundle_show(name: str, as_json: bool) -> None:
    """Show what a bundle is made of, and how accurate it is.

    NAME is the name of a shipped bundle, or a folder.

    \b
      popcosmos-hpc bundle show kids9
      popcosmos-hpc bundle show kids9 --json
    """
    import json

    from popcosmos_hpc.cli.describe import describe
    from popcosmos_hpc.model.bundle import load_bundle

    loaded = load_bundle(name)
    click.echo(json.dumps(loaded.manifest, indent=1, ensure_ascii=False) if as_json else describe(loaded))


@bundle.command("verify")
@click.argument("name")
def bundle_verify(name: str) -> None:
    """Check a bundle's files against their hashes.

    NAME is the name of a shipped bundle, or a folder.

    \b
      popcosmos-hpc bundle verify my_bundle
    """
    from popcosmos_hpc.model.bundle import load_bundle

    loaded = load_bundle(name)
    click.echo(f"{loaded.path}: complete, sha256 {loaded.sha256}")


@bundle.command("import", short_help="Convert published models into bundles.")
@click.argument("source", type=click.Choice(["pop-cosmos"]))
@click.argument("folder", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder to make the bundles in.")
@click.option("--distil", type=_PATH, help="Training configuration: also train one network for all bands.")
@_STATES
def bundle_import(
    source: str, folder: Path, out: Path, distil: Path | None, checkpoint_dir: Path | None
) -> None:
    """Convert published models into bundles.

    FOLDER is the release's `trained_models`. Its files are read, and never run. Photometry, line corrections
    and surviving mass become one bundle, with the published zero points and error floors beside it; noise
    and population models become one each, where the release holds them.

    \b
      popcosmos-hpc bundle import pop-cosmos pop-cosmos/trained_models --out bundles
    """
    from popcosmos_hpc.training.distil import load_distil_recipe
    from popcosmos_hpc.training.published_import import import_release

    recipe = None if distil is None else load_distil_recipe(distil)
    imported = import_release(folder, out, recipe, checkpoint_dir)
    for path in imported.bundles:
        click.echo(f"bundle     {path}")
    for reason in imported.left_out:
        click.echo(f"left out   {reason}", err=True)
