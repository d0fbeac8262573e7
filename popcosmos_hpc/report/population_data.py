"""What the population report looks at: galaxies with masses, rates and magnitudes, per volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from popcosmos_hpc.errors import ConfigurationError, SchemaError
from popcosmos_hpc.model.bundle import load_bundle, load_population
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.survey.readers import table_reader
from popcosmos_hpc.training.number_density import SQUARE_DEGREES, mass_function, volume_element
from popcosmos_hpc.training.population_sample import evaluate, sample_prior

PIVOT_MASS = (10.5, 11.0)
_PIVOTS = ((0.5, 1.0), (0.2, 0.5), (1.0, 2.0), (2.0, 3.0), (3.0, 4.5))
_ENOUGH = 50
_ROWS = 200_000
# Columns of the tables of 3D-HST (FAST, and its UV + infrared rates), and plain ones.
_SPELLINGS = (
    ("redshift", "log10_mass", "log10_sfr"),
    ("z", "lmass", "lsfr"),
    ("z_best", "fast_lmass", "sfr"),
)
_LINEAR_RATES = ("sfr",)
_FACTS = ("population", "band", "magnitude_limit", "galaxies_per_square_degree")


@dataclass(frozen=True)
class Catalog:
    """Galaxies to compare with.

    Args:
        name: for legends.
        redshift: (n,).
        log_mass: (n,) log10 of surviving mass [Msun].
        log_sfr: (n,) log10 SFR [Msun/yr]; -inf where none was found.
        per_galaxy: galaxies per square degree that each stands for.
    """

    name: str
    redshift: np.ndarray
    log_mass: np.ndarray
    log_sfr: np.ndarray
    per_galaxy: float


@dataclass(frozen=True)
class Population:
    """Draws of a population.

    Args:
        name: for the page.
        sample: name -> (n,) parameters and derived quantities.
        magnitude: (n,) AB magnitudes in `band`.
        band: the band of magnitudes.
        limit: faintest magnitude of the draws; None if they have no limit.
        per_draw: galaxies per square degree that a draw stands for.
        pivot: redshift range at which `per_draw` was set; None if it is known.
        catalogs: to compare with.
    """

    name: str
    sample: dict[str, np.ndarray]
    magnitude: np.ndarray
    band: str
    limit: float | None
    per_draw: float
    pivot: tuple[float, float] | None
    catalogs: tuple[Catalog, ...]

    @property
    def n(self) -> int:
        """Number of draws."""
        return len(self.magnitude)

    def __getitem__(self, name: str) -> np.ndarray:
        """A parameter or derived quantity (n,)."""
        return self.sample[name]

    def faintest_mass(self, low: float, high: float) -> float:
        """Log10 mass above which draws of a redshift bin are complete, estimated from their own M/L.

        Pozzetti et al. 2010: 95 percent of the faintest fifth would still be seen at this mass. It
        misses galaxies whose M/L is so high that none of them is among the draws. -inf without a limit.
        """
        chosen = (self["redshift"] > low) & (self["redshift"] < high)
        if self.limit is None or np.count_nonzero(chosen) < _ENOUGH:
            return -np.inf
        magnitude = self.magnitude[chosen]
        at_limit = self["log10_mass"][chosen] + 0.4 * (magnitude - self.limit)
        return float(np.quantile(at_limit[magnitude >= np.quantile(magnitude, 0.8)], 0.95))


def shell(low: float, high: float) -> float:
    """Comoving volume of a redshift bin per square degree [Mpc^3]."""
    redshift = np.linspace(low, high, 101)
    return float(np.trapezoid(volume_element(redshift), redshift)) / SQUARE_DEGREES


def read_population(
    source: AbstractPrior | np.ndarray | Path | str,
    bundle: str | Path,
    band: str,
    n_draws: int,
    magnitude_limit: float | None,
    comparison: Sequence[Path],
    name: str | None,
) -> Population:
    """Draw or read a population; arguments as for `write_population_report`."""
    theta, names, facts = _theta(source, n_draws)
    if len(theta) < _ENOUGH:
        raise ConfigurationError(f"at least {_ENOUGH} draws", str(len(theta)), "population")
    sample = evaluate(theta, names, load_bundle(bundle), (band,))
    if magnitude_limit is None and facts.get("band") == band and "magnitude_limit" in facts:
        magnitude_limit = float(facts["magnitude_limit"])
    columns, magnitude = sample.columns, sample.magnitudes[band]
    density = facts.get("galaxies_per_square_degree")
    if density is None:
        per_draw, pivot = _scale(columns["redshift"], columns["log10_mass"])
    else:
        per_draw, pivot = float(density) / len(theta), None
    catalogs = (read_catalog(tuple(comparison)),) if comparison else ()
    title = name or facts.get("population") or _title(source)
    return Population(title, columns, magnitude, band, magnitude_limit, per_draw, pivot, catalogs)


def _title(source) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "population"


def _theta(source, n_draws: int) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
    """Draws (n, param), the names of their columns, and facts of the file that they are from."""
    if isinstance(source, AbstractPrior):
        return sample_prior(source, n_draws, seed=1), source.space.names, {}
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.shape[1] != POP_COSMOS.size:
            raise ConfigurationError(
                f"draws of shape (n, {POP_COSMOS.size})", str(source.shape), "population",
                f"Order their columns {', '.join(POP_COSMOS.names)}.",
            )  # fmt: skip
        return source, POP_COSMOS.names, {}
    path = Path(source)
    if not path.is_file():
        return _theta(load_population(source), n_draws)
    table = _columns(path, POP_COSMOS.names)
    return np.column_stack([table[column] for column in POP_COSMOS.names]), POP_COSMOS.names, _facts(path)


def _facts(path: Path) -> dict[str, str]:
    """What the metadata of a Parquet file say about its draws; nothing of any other file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid:
        return {}
    return {key: metadata[key.encode()].decode() for key in _FACTS if key.encode() in metadata}


def _columns(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a table as float64, missing values as NaN."""
    reader = table_reader(path)
    found = reader.columns(path)
    missing = [name for name in names if name not in found]
    if missing:
        raise SchemaError(
            f"the columns {', '.join(names)}", f"no {', '.join(missing)}", str(path), "Choose another table."
        )
    chunks = [chunk.table for chunk in reader.chunks(path, tuple(names), _ROWS)]
    table = pa.concat_tables(chunks)
    return {name: table[name].to_numpy(zero_copy_only=False).astype(float) for name in names}


def read_catalog(paths: tuple[Path, ...], name: str = "3D-HST") -> Catalog:
    """Read tables of redshifts, masses and rates, taken together.

    Columns are `redshift`, `log10_mass` and `log10_sfr`, or those of the catalogs of 3D-HST: `z`, `lmass`
    and `lsfr` of FAST, or `z_best`, `fast_lmass` and the UV + infrared `sfr`.

    Raises:
        SchemaError: a table has none of these sets of columns.
    """
    parts = []
    for path in paths:
        known = table_reader(Path(path)).columns(Path(path))
        spelling = next((names for names in _SPELLINGS if set(names) <= set(known)), None)
        if spelling is None:
            raise SchemaError(
                "columns " + ", or ".join(" ".join(names) for names in _SPELLINGS),
                ", ".join(list(known)[:12]), str(path), "Rename the columns.",
            )  # fmt: skip
        table = _columns(Path(path), spelling)
        redshift, log_mass, rate = (table[column] for column in spelling)
        if spelling[2] in _LINEAR_RATES:
            rate = np.log10(np.where(rate > 0, rate, np.nan))
        parts.append(np.array([redshift, log_mass, np.where(rate > -50, rate, -np.inf)]))
    values = np.concatenate(parts, axis=1)
    values = values[:, (values[0] > 0) & (values[0] < 8) & (values[1] > 0)]
    per_galaxy, _ = _scale(values[0], values[1])
    return Catalog(name, values[0], values[1], values[2], per_galaxy)


def _scale(redshift: np.ndarray, log_mass: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Galaxies per square degree for each draw, and the redshifts at which that was set.

    Numbers of galaxies of `PIVOT_MASS` are made equal to those of the joined mass function, in the first
    of the redshift ranges that has enough draws.
    """
    massive = (log_mass > PIVOT_MASS[0]) & (log_mass < PIVOT_MASS[1])
    for low, high in _PIVOTS:
        n = np.count_nonzero(massive & (redshift > low) & (redshift < high))
        if n >= _ENOUGH:
            z, mass = np.linspace(low, high, 41), np.linspace(*PIVOT_MASS, 41)
            density = np.trapezoid(mass_function(mass[None, :], z[:, None]), mass, axis=1)
            return float(np.trapezoid(density * volume_element(z), z)) / SQUARE_DEGREES / n, (low, high)
    raise ConfigurationError(
        f"{_ENOUGH} galaxies of 10^{PIVOT_MASS[0]} to 10^{PIVOT_MASS[1]} solar masses in some redshift range",
        "fewer", "population", "Draw more galaxies.",
    )  # fmt: skip
