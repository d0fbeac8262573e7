"""Configuration of a mock catalog: YAML in, frozen models out; every mistake is refused at once."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from popcosmos_hpc.config import ModelConfig, PartitionConfig
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.settings import Section, load_settings
from popcosmos_hpc.survey.footprint import Box, Cone, Footprint, Pixels, Region

Declination = Annotated[float, Field(ge=-90, le=90)]
RightAscension = Annotated[float, Field(ge=-360, le=360)]


class ConeConfig(Section):
    """A circle on the sky: centre and `radius` [deg]."""

    ra: RightAscension
    dec: Declination
    radius: float = Field(gt=0, le=180)

    def region(self) -> Region:
        """The region."""
        return Cone(self.ra, self.dec, self.radius)


class BoxConfig(Section):
    """Ranges of right ascension (eastward; it may pass 0) and declination [deg]."""

    ra: tuple[RightAscension, RightAscension]
    dec: tuple[Declination, Declination]

    @model_validator(mode="after")
    def _consistent(self):
        if self.ra[0] == self.ra[1] or not self.dec[0] < self.dec[1]:
            raise ValueError(
                "ra: [west, east] and dec: [south, north] of a box with an area (all around is ra: [0, 360])"
            )
        return self

    def region(self) -> Box:
        """The region."""
        return Box(*self.ra, *self.dec)


class PixelsConfig(Section):
    """Nested HEALPix pixels of one order."""

    order: int = Field(ge=0, le=10)
    pixels: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self):
        if not all(0 <= pixel < 12 * 4**self.order for pixel in self.pixels):
            raise ValueError(f"nested pixels of order {self.order}, from 0 to {12 * 4**self.order - 1}")
        return self

    def region(self) -> Region:
        """The region."""
        return Pixels(self.order, self.pixels)


class SkyConfig(Section):
    """Where the survey looks: exactly one of the keys.

    Attributes:
        full: the whole sky.
        cone: a circle.
        boxes: boxes without overlap.
        healpix: a set of pixels.
    """

    full: Literal[True] | None = None
    cone: ConeConfig | None = None
    boxes: tuple[BoxConfig, ...] | None = Field(default=None, min_length=1)
    healpix: PixelsConfig | None = None

    @model_validator(mode="after")
    def _consistent(self):
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"one of full, cone, boxes, healpix, not {' and '.join(given) or 'none'}")
        regions = [box.region() for box in self.boxes or ()]
        if any(one.overlaps(other) for one, other in itertools.combinations(regions, 2)):
            raise ValueError("boxes that do not overlap")
        return self

    def footprint(self) -> Footprint:
        """The footprint."""
        if self.full:
            return Footprint((Pixels.full_sky(),))
        given = (self.cone, self.healpix, *(self.boxes or ()))
        return Footprint(tuple(item.region() for item in given if item is not None))


class UncertaintyConfig(Section):
    """How large the flux errors are: depths or a bundle.

    Attributes:
        depths: AB magnitude per band at which a flux is `sigma` errors; every galaxy has these errors.
        sigma: of the depths; 5 if not given.
        bundle: an uncertainty bundle, which draws the errors given the noiseless fluxes: the name of a
            shipped one, or a folder.
    """

    depths: dict[str, float] | None = None
    sigma: float | None = Field(default=None, gt=0)
    bundle: str | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if (self.depths is None) == (self.bundle is None):
            raise ValueError("either depths or a bundle")
        if self.bundle is not None and self.sigma is not None:
            raise ValueError("no sigma with a bundle (sigma belongs to depths)")
        return self

    def flux_errors(self, bands: tuple[str, ...]) -> np.ndarray:
        """1-sigma errors (band,) [nanomaggies] of bands; there must be a depth for each.

        Raises:
            ConfigurationError: there is none for a band, or one for another band.
        """
        depths = self.depths or {}
        if set(depths) != set(bands):
            raise ConfigurationError(
                f"a depth for each of the bands {', '.join(bands)}",
                f"depths for {', '.join(depths) or 'none'}",
                "uncertainty.depths",
                "Name every band once, and no other.",
            )
        magnitudes = np.array([depths[band] for band in bands])
        return 10 ** (0.4 * (AB_ZERO_POINT - magnitudes)) / (self.sigma or 5.0)


class ConditionConfig(Section):
    """A condition on one band's noisy photometry: limits of its AB magnitude and of its S/N."""

    band: str
    brighter_than: float | None = None
    fainter_than: float | None = None
    min_snr: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self):
        limits = (self.brighter_than, self.fainter_than, self.min_snr)
        if limits == (None, None, None):
            raise ValueError("brighter_than, fainter_than or min_snr beside the band")
        if None not in limits[:2] and not limits[0] > limits[1]:  # type: ignore[operator]
            raise ValueError("a magnitude brighter_than above fainter_than: this range is empty")
        return self


class CoverageConfig(Section):
    """Bands that a share of the galaxies lack, all of them together."""

    bands: tuple[str, ...] = Field(min_length=1)
    missing_fraction: float = Field(ge=0, lt=1)


def _whole_sky(value: Any) -> Any:
    return {"full": True} if value == "full" else value


class MockConfig(Section):
    """A mock catalog.

    Attributes:
        name: a word for people.
        seed: everything random follows from it and a galaxy's index.
        n_galaxies: galaxies in the catalog, that is, detected ones.
        sky: where they are; `full` or a mapping.
        model: population, photometry and noise, as in a run.
        uncertainty: how large the flux errors are.
        selection: conditions, all of which a galaxy must fulfil to be in the catalog.
        coverage: what is not observed.
        most_draws: galaxies of the population among which one must be detected for the work to begin.
        partition: size of the catalog's files.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=1, ge=0, lt=2**32)
    n_galaxies: int = Field(ge=1, le=10**12)
    sky: Annotated[SkyConfig, BeforeValidator(_whole_sky)] = SkyConfig(full=True)
    model: ModelConfig
    uncertainty: UncertaintyConfig
    selection: tuple[ConditionConfig, ...] = ()
    coverage: tuple[CoverageConfig, ...] = ()
    most_draws: int = Field(default=2**20, ge=1, le=2**30)
    partition: PartitionConfig = PartitionConfig(max_rows=250_000)

    @model_validator(mode="after")
    def _consistent(self):
        if self.model.use_redshift:
            raise ValueError("no use_redshift: a mock catalog has true redshifts, but knows none as a datum")
        return self

    def science(self) -> dict[str, Any]:
        """The settings that the galaxies depend on; bundles are known by their hashes, not their places."""
        settings = self.model_dump(mode="json", exclude={"name", "partition", "most_draws"})
        del settings["model"]["bundle"], settings["uncertainty"]["bundle"]
        if self.model.prior not in ("analytic", "gaussian"):
            settings["model"]["prior"] = "population"
        return settings


def load_mock_config(path_or_name: str | Path) -> MockConfig:
    """Read and check the configuration of a mock catalog.

    Raises:
        ConfigurationError: the file is missing or not YAML, or a setting is illegal.
    """
    return load_settings(MockConfig, "mocks", path_or_name)
