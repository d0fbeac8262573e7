"""A pop-cosmos release as bundles: photometry, uncertainty, and population where the release holds one."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.model.noise_bundle import uncertainty_to_bundle
from popcosmos_hpc.model.photulator import PhotulatorEmulator
from popcosmos_hpc.training.accuracy import write_report
from popcosmos_hpc.training.distil import DistilRecipe, distil
from popcosmos_hpc.training.published import file_hashes, find_release, read_emulator
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS
from popcosmos_hpc.training.published_noise import read_noise
from popcosmos_hpc.training.published_population import Calibration, PublishedPopulation, read_population
from popcosmos_hpc.training.recipe_file import software

_PREFIX = "pop_cosmos"
_LICENCE = "MIT licence of pop-cosmos; a conversion of its published numbers, for the user who has them."
_CITATIONS = {
    "photometry": (
        "Alsing et al. 2020, SPECULATOR (arXiv:1911.11778)",
        "Leistedt et al. 2023, line corrections, zero points and error floors (arXiv:2207.07673)",
        "Alsing et al. 2024, pop-cosmos (arXiv:2402.00935)",
        "Thorp et al. 2025, pop-cosmos (arXiv:2506.12122)",
        "Conroy, Gunn and White 2009, FSPS (arXiv:0809.4261)",
    ),
    "population": (
        "Alsing et al. 2024, pop-cosmos (arXiv:2402.00935)",
        "Thorp et al. 2025, pop-cosmos (arXiv:2506.12122)",
    ),
}
PUBLISHED = Calibration({band: row.zero_point for band, row in COSMOS_BANDS.items()}, LINE_OFFSETS)
"""Zero points and line offsets that come with the emulators."""


class Imported(NamedTuple):
    """What an import made.

    Attributes:
        bundles: their folders.
        left_out: files that were not converted, each with its reason.
    """

    bundles: tuple[Path, ...]
    left_out: tuple[str, ...]


def import_release(
    folder: Path | str,
    out: Path | str,
    recipe: DistilRecipe | None = None,
    checkpoint_dir: Path | None = None,
) -> Imported:
    """Convert the models of a release; see `training.published` for its files.

    Makes `pop_cosmos` (photometry, with the published calibration), `pop_cosmos_uncertainty` per noise
    model, and per population model `pop_cosmos_population` and, where it brings its own calibration,
    `pop_cosmos_calibrated`. Of several models of a kind, each carries the ending of its file's name. Where a
    recipe is given, a bundle of its name has the photometry of `pop_cosmos` by one shared network.

    Args:
        folder: of the release.
        out: folder to make the bundles in.
        recipe: of the distillation, or None for none.
        checkpoint_dir: where its training state is kept; in `out` if None.

    Raises:
        BundleError: a file is missing, damaged or of another layout.
    """
    root, out = find_release(Path(folder)), Path(out)
    hashes = file_hashes(root)
    emulator = read_emulator(root)
    # Whatever may be refused is read before anything is written.
    populations = {tag: read_population(path) for tag, path in models_of(root, "catalogueModel").items()}
    noises, left_out = _noises(root, emulator.bands)
    made = [_write_photometry(out / _PREFIX, emulator, PUBLISHED, hashes)]
    for tag, (path, noise) in noises.items():
        facts, arrays = uncertainty_to_bundle(noise.model)
        facts |= {"transport_error": noise.transport_error, "error_floor": noise.error_floor}
        note = "Flux errors of COSMOS2020 given fluxes, both as the data show them, zero points included."
        made.append(
            _write(out / f"{_PREFIX}_uncertainty{tag}", note, facts, arrays, {path.name: hashes[path.name]})
        )
    for tag, population in populations.items():
        made += _write_population(out, root, tag, population, hashes)
    if recipe is not None:
        states = out / f"{recipe.name}.checkpoints" if checkpoint_dir is None else checkpoint_dir
        made.append(_write_distilled(out / recipe.name, emulator, recipe, states, hashes))
    for path in made:
        load_bundle(path)
    return Imported(tuple(made), tuple(left_out))


def models_of(root: Path, stem: str) -> dict[str, Path]:
    """Ending of the name -> file. Of files for two devices, which hold the same numbers, that for the CPU."""
    files = {path.stem[len(stem) :]: path for path in sorted(root.glob(f"{stem}*.pt"))}
    if "CPU" in files:
        files.pop("GPU", None)
    if len(files) == 1:
        return dict(zip([""], files.values(), strict=True))
    return {f"_{ending.strip('_-')}".rstrip("_"): path for ending, path in files.items()}


def _noises(root: Path, bands: tuple[str, ...]) -> tuple[dict, list[str]]:
    """Noise models by tag, and those that are of another kind, with the reason."""
    found, left_out = {}, []
    for tag, path in models_of(root, "noiseModel").items():
        try:
            found[tag] = (path, read_noise(path, bands))
        except BundleError as error:
            if "NoiseModelMDN" not in error.got:
                raise
            left_out.append(f"{path.name}: a mixture density network, which is of an earlier pop-cosmos")
    return found, left_out


def _write_population(
    out: Path, root: Path, tag: str, population: PublishedPopulation, hashes: dict[str, str]
) -> list[Path]:
    path = models_of(root, "catalogueModel")[tag]
    facts, arrays = prior_to_bundle(population.prior)
    facts["transport_error"] = population.transport_error
    note = f"Population of galaxies of pop-cosmos, {path.name}."
    own = {path.name: hashes[path.name]}
    made = [_write(out / f"{_PREFIX}_population{tag}", note, facts, arrays, own)]
    if population.calibration is not None:
        emulator = read_emulator(root, population.calibration.offsets)
        made.append(
            _write_photometry(out / f"{_PREFIX}_calibrated{tag}", emulator, population.calibration, hashes)
        )
    return made


def _write_distilled(
    out: Path, emulator: PhotulatorEmulator, recipe: DistilRecipe, states: Path, hashes: dict[str, str]
) -> Path:
    student, table = distil(emulator, recipe, states)
    note = recipe.description or f"{len(emulator.bands)} bands by one network that learned pop-cosmos's."
    more = {"accuracy": table, "recipe": recipe.model_dump(mode="json")}
    _write_photometry(out, student, PUBLISHED, hashes, note, more)
    write_report(table, student.bands, out)
    return out


def _write_photometry(
    out: Path,
    emulator: PhotulatorEmulator,
    calibration: Calibration,
    hashes: dict[str, str],
    note: str = "",
    more: dict[str, Any] | None = None,
) -> Path:
    facts, arrays = emulator.to_bundle()
    note = note or f"{len(emulator.bands)} bands by the networks that pop-cosmos published."
    facts |= {**photometry_facts(emulator, calibration), **(more or {})}
    _write(out, note, facts, arrays, hashes)
    settings = {"model": {"likelihood": facts["likelihood"]}}
    text = "# For the configuration of a run that fits these bands.\n" + yaml.safe_dump(
        settings, sort_keys=False
    )
    (out / "likelihood.yaml").write_text(text)
    return out


def photometry_facts(emulator: PhotulatorEmulator, calibration: Calibration) -> dict[str, Any]:
    """Manifest entries that tell where photometry comes from and how to use it.

    Args:
        emulator: published, or distilled from it.
        calibration: zero points that belong to its line offsets.
    """
    pivots = np.asarray(emulator.lines.mean_wavelength)
    labels = {band: COSMOS_BANDS[band].label if band in COSMOS_BANDS else band for band in emulator.bands}
    known = [band for band in emulator.bands if band in calibration.zero_points]
    floors = {band: COSMOS_BANDS[band].error_floor for band in emulator.bands if band in COSMOS_BANDS}
    return {
        "filters": {
            band: {"source": f"pop-cosmos, {labels[band]}", "pivot": round(float(pivot), 1)}
            for band, pivot in zip(emulator.bands, pivots, strict=True)
        },
        "line_offsets": {line.name: round(line.offset, 7) for line in calibration.offsets},
        "likelihood": {
            "family": "student_t",
            "nu": 2.0,
            "error_floor": floors,
            "zero_points": {band: calibration.zero_points[band] for band in known},
        },
        "training_box": {p.name: [p.lower, p.upper] for p in emulator.space.parameters if p.name != "N"},
        "line_redshift_max": 4.5,
    }


def _write(out: Path, note: str, facts: dict, arrays: dict[str, np.ndarray], files: dict[str, str]) -> Path:
    kind = facts.get("kind", "photometry")
    citations = list(_CITATIONS["photometry" if kind == "photometry" else "population"])
    manifest = {
        "name": out.name,
        "description": note,
        **facts,
        "synthesis": {
            "backend": "FSPS, by pop-cosmos" if kind == "photometry" else "pop-cosmos",
            "citations": citations,
            "files": files,
        },
        "software": software(),
        "licence_note": _LICENCE,
    }  # fmt: skip
    return save_bundle(out, manifest, arrays)
