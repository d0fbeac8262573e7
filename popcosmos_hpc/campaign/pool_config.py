"""Configuration of a pool of prior draws."""

from pathlib import Path

from pydantic import Field, model_validator

from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.settings import Section, load_settings


class PoolModelConfig(Section):
    """What is drawn.

    Attributes:
        bundle: photometry bundle, by name or folder.
        prior: as in a run: `analytic`, `gaussian`, or a population bundle by name or folder.
        bands: bands of the pool; all of the bundle if not given.
    """

    bundle: str
    prior: str
    bands: tuple[str, ...] | None = None


class DepthLimitConfig(Section):
    """Draws fainter than this AB magnitude in this band are left out of the pool."""

    band: str
    magnitude: float = Field(gt=0, lt=60)


class PoolConfig(Section):
    """A pool of prior draws.

    Attributes:
        name: for people.
        seed: of all draws.
        model: what is drawn.
        n_draws: draws of the prior; those outside the emulator's redshifts or the limit are not kept.
        n_tiles: tiles, a power of two.
        depths: 5-sigma AB magnitudes of the survey; flux differences well below them do not separate tiles.
        default_depth: of bands not named.
        limit: what is left out for being too faint; nothing if not given.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=1, ge=0, lt=2**32)
    model: PoolModelConfig
    n_draws: int = Field(default=1_000_000, ge=1000, lt=2**31)
    n_tiles: int = Field(default=32768, ge=1, le=2**20)
    depths: dict[str, float] = Field(default_factory=dict)
    default_depth: float = 27.0
    limit: DepthLimitConfig | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.n_tiles & (self.n_tiles - 1):
            raise ValueError("a number of tiles that is a power of two, such as 32768")
        return self

    def softening(self, bands: tuple[str, ...]) -> list[float]:
        """1-sigma flux errors (band,) [nanomaggies] at the depths."""
        depths = [self.depths.get(band, self.default_depth) for band in bands]
        return [10 ** (0.4 * (AB_ZERO_POINT - depth)) / 5 for depth in depths]


def load_pool_config(path_or_name: str | Path) -> PoolConfig:
    """Read and check the configuration of a pool: a YAML file, or the name of a shipped one.

    Raises:
        ConfigurationError: a setting is missing, unknown, or contradicts another.
    """
    return load_settings(PoolConfig, "pools", path_or_name)
