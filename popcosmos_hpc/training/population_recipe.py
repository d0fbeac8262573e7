"""From a recipe and a survey's catalog to a population bundle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from popcosmos_hpc.config import LikelihoodConfig
from popcosmos_hpc.errors import BundleError, ConfigurationError, TrainingError
from popcosmos_hpc.model.bundle import Bundle, load_bundle, load_population, save_bundle
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.noise import AbstractUncertainty
from popcosmos_hpc.model.noise_table import TabulatedUncertainty
from popcosmos_hpc.model.speculator import SpeculatorEmulator
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.canonical import select_rows
from popcosmos_hpc.survey.catalog import SourceCatalog
from popcosmos_hpc.survey.preset import load_preset
from popcosmos_hpc.training.population import Forward, PopulationSchedule, Selection, train_population
from popcosmos_hpc.training.recipe_file import read_recipe, software


class PopulationRecipe(BaseModel):
    """A population to be learned from the photometry of a catalog.

    Attributes:
        name: of the bundle.
        description: for people.
        start: population bundle to start from.
        bundle: photometry bundle.
        survey: preset of the catalog.
        input: HATS catalog that `ingest` wrote.
        bands: bands to compare; galaxies that miss one are left out, and counted.
        limits: faintest AB magnitude per band of the survey's selection.
        where: further selection of rows, by columns that photometry does not depend on.
        likelihood: noise model, error floor and zero points of the mock galaxies.
        uncertainty: `table` (errors of observed galaxies of like flux), or an uncertainty bundle.
        reference: band in which the table's fluxes are matched; the first limited band if None.
        schedule: length and pace.
        citations: works that the data are of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    start: str
    bundle: str
    survey: str
    input: str
    bands: tuple[str, ...]
    limits: dict[str, float] = {}
    where: str | None = None
    likelihood: LikelihoodConfig = LikelihoodConfig()
    uncertainty: str = "table"
    reference: str | None = None
    schedule: PopulationSchedule = PopulationSchedule()
    citations: tuple[str, ...] = ()


def load_population_recipe(path: Path) -> PopulationRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: the file is missing or says something unknown.
    """
    return read_recipe(path, PopulationRecipe, "train population")


def train_population_bundle(recipe: PopulationRecipe, out: Path, checkpoint_dir: Path | None = None) -> Path:
    """Train a population on a catalog's photometry and write its bundle.

    Returns:
        The folder of the bundle.

    Raises:
        TrainingError: no galaxy is left, or training cannot go on.
        ConfigurationError, BundleError, SchemaError: the recipe does not fit its bundle or catalog.
    """
    flux, flux_err, counts = read_photometry(recipe)
    bundle = load_bundle(recipe.bundle, "photometry")
    forward = build_forward(recipe, bundle, flux, flux_err)
    settings = recipe.model_dump(mode="json", exclude={"input"})
    digest = hashlib.sha256(np.ascontiguousarray(flux).tobytes()).hexdigest()
    facts = {
        "recipe": settings,
        "start_sha256": load_bundle(recipe.start, "population").sha256,
        "photometry_bundle_sha256": bundle.sha256,
        "training_photometry": {**counts, "sha256": digest},
    }
    short = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    state = None if checkpoint_dir is None else checkpoint_dir / f"{recipe.name}-{short}.eqx"
    trained, found = train_population(forward, flux, flux_err, recipe.schedule, state, recipe.name)
    return _write(recipe, trained, found, facts, out)


def read_photometry(recipe: PopulationRecipe) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Fluxes and errors (galaxy, band) [nanomaggies] of the galaxies to learn from, and what was left out.

    Raises:
        ConfigurationError: the catalog lacks a band.
        TrainingError: no galaxy is left.
    """
    table, counts = select_galaxies(recipe)
    flux, flux_err = (_columns(table, kind, recipe.bands) for kind in ("flux", "flux_err"))
    return flux.astype(np.float32), flux_err.astype(np.float32), counts


def select_galaxies(recipe: PopulationRecipe) -> tuple[pa.Table, dict[str, int]]:
    """Rows of the catalog to learn from, sorted by id, and what was left out; errors as above."""
    catalog = SourceCatalog(recipe.input, load_preset(recipe.survey))
    if missing := [band for band in recipe.bands if band not in catalog.bands]:
        raise ConfigurationError(
            f"bands of the catalog: {', '.join(catalog.bands)}",
            ", ".join(missing),
            "bands",
            "Correct `bands` or `survey`.",
        )
    table = pa.concat_tables(catalog.read(*interval)[0] for interval in catalog.pixel_ranges())
    table = table.sort_by("object_id")
    kept = select_rows(recipe.where, table)
    counts = {"rows": table.num_rows, "not_selected": int((~kept).sum())}
    flux, flux_err, state = (_columns(table, kind, recipe.bands) for kind in ("flux", "flux_err", "state"))
    complete = np.all((state == BandState.OBSERVED) & np.isfinite(flux) & (flux_err > 0), axis=1)
    counts["incomplete"] = int((kept & ~complete).sum())
    kept &= complete
    bright = np.zeros_like(kept)
    bright[kept] = Selection.from_magnitudes(recipe.limits, recipe.bands).passes(flux[kept])
    counts["too_faint"] = int((kept & ~bright).sum())
    counts["galaxies"] = int(bright.sum())
    if not bright.any():
        raise TrainingError(
            "galaxies with all bands that pass the selection", f"none of {table.num_rows} ({counts})",
            recipe.input, "Choose bands that most galaxies have, and limits in AB magnitudes.",
        )  # fmt: skip
    return table.filter(pa.array(bright)), counts


def _columns(table: pa.Table, kind: str, bands: tuple[str, ...]) -> np.ndarray:
    return np.stack([table[f"{kind}_{band}"].to_numpy() for band in bands], axis=1)


def build_forward(
    recipe: PopulationRecipe, bundle: Bundle, flux: np.ndarray, flux_err: np.ndarray
) -> Forward:
    """The model to be trained, at its start.

    Raises:
        BundleError: the photometry bundle lacks a band, or the start is no diffusion over its parameters.
        ConfigurationError: zero points or floors of unknown bands.
    """
    prior = load_population(recipe.start)
    if not isinstance(prior, DiffusionPrior) or prior.space.names != bundle.space.names:
        raise BundleError(
            f"a diffusion over {', '.join(bundle.space.names)}",
            type(prior).__name__,
            recipe.start,
            "Name a population bundle over the parameters of the photometry bundle.",
        )
    emulator = bundle.emulator(recipe.bands)
    settings = recipe.likelihood
    floor = settings.error_floor
    named = set(settings.zero_points) | (set(floor) if isinstance(floor, dict) else set())
    if strange := sorted(named - set(recipe.bands)):
        raise ConfigurationError(
            f"settings of the bands {', '.join(recipe.bands)}",
            ", ".join(strange),
            "likelihood",
            "Name bands of this recipe alone.",
        )
    floors = [floor.get(band, 0.0) if isinstance(floor, dict) else floor for band in recipe.bands]
    likelihood = Likelihood(
        [settings.zero_points.get(band, 1.0) for band in recipe.bands], floors, settings.family,
        2.0 if settings.nu is None else settings.nu,
    )  # fmt: skip
    n_lines = len(emulator.lines.names) if isinstance(emulator, SpeculatorEmulator) else 0
    return Forward(
        GalaxyModel(emulator, likelihood, prior),
        _uncertainty(recipe, flux, flux_err),
        jnp.zeros(len(recipe.bands)),
        jnp.zeros(n_lines if recipe.schedule.train_lines else 0),
        Selection.from_magnitudes(recipe.limits, recipe.bands),
    )


def _uncertainty(recipe: PopulationRecipe, flux: np.ndarray, flux_err: np.ndarray) -> AbstractUncertainty:
    if recipe.uncertainty == "table":
        reference = recipe.reference or next(iter(recipe.limits), recipe.bands[0])
        return TabulatedUncertainty(recipe.bands, flux, flux_err, reference)
    from popcosmos_hpc.model.bundle import load_uncertainty

    model = load_uncertainty(recipe.uncertainty)
    if tuple(model.bands) != recipe.bands:
        raise BundleError(
            f"an uncertainty model of the bands {', '.join(recipe.bands)}", ", ".join(model.bands),
            recipe.uncertainty, "Train one, or use `uncertainty: table`.",
        )  # fmt: skip
    return model


def _write(
    recipe: PopulationRecipe, trained: Forward, found: dict[str, float], facts: dict[str, Any], out: Path
) -> Path:
    prior: Any = trained.galaxy.prior  # a diffusion: training refuses others
    entries, arrays = prior_to_bundle(prior)
    calibrated = trained.calibrated().likelihood.zero_points
    manifest = {
        "name": recipe.name,
        "description": recipe.description,
        **entries,
        **facts,
        "accuracy": {f"held_out_distance_{name}": round(value, 6) for name, value in found.items()},
        "zero_points": {
            band: round(float(value), 5) for band, value in zip(recipe.bands, calibrated, strict=True)
        },
        "citations": list(recipe.citations),
        "software": software(),
    }
    emulator = trained.galaxy.emulator
    if trained.log_lines.size and isinstance(emulator, SpeculatorEmulator):
        factors = np.exp(np.asarray(trained.log_lines))
        manifest["line_factors"] = {
            name: round(float(value), 4) for name, value in zip(emulator.lines.names, factors, strict=True)
        }
    save_bundle(out, manifest, arrays)
    load_bundle(out, "population")
    return out
