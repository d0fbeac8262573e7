"""Recipes for uncertainty models: what a training configuration may say."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.training.recipe_file import read_recipe


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TableSource(_Strict):
    """Fluxes and their errors from a survey's table.

    Attributes:
        path: of the table; environment variables are expanded.
        preset: survey preset that says what its columns mean; a table without one has columns
            `flux_<band>` and `flux_err_<band>` [nanomaggies], NaN where there is none.
        bands: bands of the model; those of the preset if None.
        where: selection over the table's own columns, or None.
        error_step: step [mag] to which the table rounds its magnitude errors; the rounding is undone by a
            uniform draw within the step, since a diffusion cannot learn a comb. 0 for none.
    """

    kind: Literal["table"] = "table"
    path: str
    preset: str | None = None
    bands: tuple[str, ...] | None = None
    where: str | None = None
    error_step: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _bands_known(self) -> "TableSource":
        if self.preset is None and self.bands is None:
            raise ValueError("a table without a preset needs `bands`")
        if self.bands is not None and (not self.bands or len(set(self.bands)) < len(self.bands)):
            raise ValueError("`bands` needs at least one band, and none twice")
        return self


class Galaxies(_Strict):
    """Galaxies of a simulated survey: wide in magnitude and colour, so that no survey's galaxy is new.

    Attributes:
        number: of galaxies.
        reference: band of the magnitudes, which also set the sizes.
        magnitude: (bright, faint) end of the reference magnitudes, uniform between.
        colour: mean difference of neighbouring bands, bluer minus redder [mag].
        colour_scatter: its scatter, of a Student t of four degrees of freedom, held to -1 to 2.5 [mag].
        no_light: share of the fainter half of the galaxies without flux in the bluest bands, as far as a
            random one: beyond the Lyman break.
    """

    number: int = Field(200_000, ge=1000)
    reference: str
    magnitude: tuple[float, float]
    colour: float = 0.3
    colour_scatter: float = Field(0.5, ge=0)
    no_light: float = Field(0.05, ge=0, le=1)


class GaapBand(_Strict):
    """One band of a survey measured with Gaussian apertures.

    Attributes:
        depth: 5-sigma AB magnitude in an aperture of 2 arcsec diameter, at the median pointing.
        noise: column of the pointings' sky noise, in any unit: only its ratio to the median is used.
        seeing: column of the pointings' full width at half maximum [arcsec].
        electrons: detected per nanomaggy in the whole exposure.
    """

    depth: float
    noise: str
    seeing: str
    electrons: float = Field(gt=0)


class GaapSource(_Strict):
    """A simulated survey with Gaussian-aperture-and-PSF photometry; see `training.error_model`.

    Attributes:
        pointings: CSV table of sky noise and seeing; environment variables are expanded.
        bands: band -> its facts.
        galaxies: that are observed.
        aperture: smallest aperture (standard deviation) [arcsec].
        largest_aperture: [arcsec].
        detection: band of the image on which apertures are defined.
        local_scatter: of ln sky noise within a pointing, independent between bands.
        zero_point_scatter: of a pointing's zero point [mag], independent between bands.
        smoothing: width of the kernel that turns the list of pointings into a density, in their standard
            deviations.
    """

    kind: Literal["gaap"]
    pointings: str
    bands: dict[str, GaapBand]
    galaxies: Galaxies
    aperture: float = Field(0.7, gt=0)
    largest_aperture: float = Field(2.0, gt=0)
    detection: str
    local_scatter: float = Field(0.05, ge=0)
    zero_point_scatter: float = Field(0.02, ge=0)
    smoothing: float = Field(0.4, ge=0, le=1)


class RubinBand(_Strict):
    """One band of a survey of many visits.

    Attributes:
        depth: 5-sigma AB magnitude of point sources in the co-add.
        visits: number of visits in it.
        gamma: of Ivezic et al. (2019), eq. 5.
        seeing: effective full width at half maximum [arcsec].
    """

    depth: float
    visits: float = Field(ge=1)
    gamma: float = Field(gt=0, le=0.04)
    seeing: float = Field(gt=0)


class RubinSource(_Strict):
    """A simulated survey after Ivezic et al. (2019); see `training.error_model`.

    Attributes:
        bands: band -> its facts.
        galaxies: that are observed.
        systematic: irreducible fractional error, sigma_sys of their eq. 4.
        depth_scatter: of the co-add's depth from place to place [mag].
        depth_correlation: of that scatter between bands.
    """

    kind: Literal["rubin"]
    bands: dict[str, RubinBand]
    galaxies: Galaxies
    systematic: float = Field(0.005, ge=0)
    depth_scatter: float = Field(0.1, ge=0)
    depth_correlation: float = Field(0.5, ge=0, le=1)


class UncertaintyRecipe(_Strict):
    """One uncertainty bundle.

    Attributes:
        name: of the bundle.
        description: for people.
        source: of fluxes and their errors.
        softening: band -> softening of its asinh magnitudes [nanomaggies]; where none is given, the 16th
            percentile of the band's errors.
        width: units per hidden layer.
        depth: hidden layers.
        n_rounds: rounds of training, each of one noised draw per row, and of at least 100 000.
        batch_size: draws per gradient step.
        learning_rate: peak of the cosine.
        average: decay per step of the averaged weights.
        n_steps: solver steps of the model's transport.
        seed: of weights, noise and the held-out rows.
        citations: works that the errors are based on.
    """

    name: str
    description: str = ""
    source: TableSource | GaapSource | RubinSource = Field(discriminator="kind")
    softening: dict[str, PositiveFloat] = {}
    width: int = Field(64, ge=1)
    depth: int = Field(3, ge=1)
    n_rounds: int = Field(40, ge=1)
    batch_size: int = Field(1024, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.999, ge=0, lt=1)
    n_steps: int = Field(12, ge=3)
    seed: int = 1
    citations: tuple[str, ...] = ()


def load_uncertainty_recipe(path: Path | str) -> UncertaintyRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: the file is missing, no YAML mapping, or says something unknown.
    """
    return read_recipe(path, UncertaintyRecipe, "train uncertainty")


def input_file(source: str) -> Path:
    """Path of a recipe's file, with environment variables expanded.

    Raises:
        ConfigurationError: there is no such file.
    """
    path = Path(os.path.expandvars(source))
    if not path.is_file():
        raise ConfigurationError(
            f"the file of {source!r}", "no such file", "train uncertainty",
            "Correct the path, or set the variable in it.",
        )  # fmt: skip
    return path
