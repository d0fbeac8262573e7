"""What the report reads of a run directory: one reading, shared by all sections."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from popcosmos_hpc.campaign.ledger import BlockRecord, Ledger
from popcosmos_hpc.campaign.status import CampaignStatus, campaign_status
from popcosmos_hpc.errors import LedgerError, SchemaError
from popcosmos_hpc.inference.summary import QUANTILES, REDSHIFT_QUANTILES
from popcosmos_hpc.partition import Block
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.photometry_store import open_photometry, passthrough_names, read_columns
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import open_partition, read_posterior

_MAX_GALAXIES = 200_000  # beyond, blocks are thinned evenly: no figure shows more
_PUBLISHED_MASS = "mass_published"  # linear, Msun; good where its flag, if there is one, is 1
_REFERENCE_BANDS = ("i", "i1", "ic", "HSC_i", "i2", "r")
_MAX_CLASSES = 8
_SECURE_CLASSES = (3.0, 4.0)


@dataclass(frozen=True)
class RunData:
    """The fitted galaxies of a run, and the facts about it.

    Args:
        run_dir: the run.
        config: run.yaml as it is.
        fingerprint: fingerprint.json as it is.
        plan: partitions and blocks.
        status: how the run stands, as `popcosmos-hpc status` says.
        done: commit records by block key.
        failed: failed attempts by block key.
        blocks: the blocks read, in order of their rows here.
        bands: names of the bands of the photometry.
        names: quantities of the summary.
        units: their units.
        photometry: flux and flux_err (galaxy, band) [nanomaggies], state (galaxy, band), object_id (galaxy,).
        summary: (galaxy, quantity, 5) quantiles.
        redshift_quantiles: (galaxy, level).
        certificate: name -> (galaxy,).
        truth: name of a quantity -> (galaxy,) known value or NaN.
        extra: passed-through columns.
    """

    run_dir: Path
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    plan: Plan
    status: CampaignStatus
    done: dict[str, BlockRecord]
    failed: dict[str, list[BlockRecord]]
    blocks: tuple[Block, ...]
    bands: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    photometry: dict[str, np.ndarray]
    summary: np.ndarray
    redshift_quantiles: np.ndarray
    certificate: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_galaxies(self) -> int:
        """Galaxies read."""
        return len(self.summary)

    @property
    def redshift_levels(self) -> np.ndarray:
        """Cumulative probabilities of the redshift quantiles."""
        return np.asarray(REDSHIFT_QUANTILES, float) / 100

    def quantile(self, name: str, percentage: float) -> np.ndarray:
        """(galaxy,) a quantile of a quantity; NaN for all if the model does not have it."""
        if name not in self.names:
            return np.full(self.n_galaxies, np.nan)
        return self.summary[:, self.names.index(name), QUANTILES.index(percentage)].astype(float)

    def median(self, name: str) -> np.ndarray:
        """(galaxy,) posterior medians of a quantity."""
        return self.quantile(name, 50.0)

    def truth_within(self, name: str) -> np.ndarray:
        """For galaxies with a known value: whether it lies in the 16 to 84 percent interval."""
        truth, low, high = self.truth[name], self.quantile(name, 16.0), self.quantile(name, 84.0)
        usable = np.isfinite(truth) & np.isfinite(low)
        return ((truth >= low) & (truth <= high))[usable]

    @cached_property
    def reference_band(self) -> str:
        """The band whose magnitude orders galaxies: an i band if there is one."""
        return next(
            (band for band in _REFERENCE_BANDS if band in self.bands), self.bands[len(self.bands) // 2]
        )

    def reference_magnitude(self) -> np.ndarray:
        """(galaxy,) AB magnitudes in the reference band; NaN where not observed or not positive."""
        index = self.bands.index(self.reference_band)
        flux = self.photometry["flux"][:, index].astype(float)
        good = (self.photometry["state"][:, index] == BandState.OBSERVED) & (flux > 0)
        return np.where(good, 22.5 - 2.5 * np.log10(np.where(good, flux, 1.0)), np.nan)

    def secure(self) -> tuple[str, np.ndarray]:
        """Name and mask (galaxy,) of the galaxies whose known redshift is the most trustworthy.

        Those of `redshift_secure`; else of `redshift_class` 3 and 4, secure in VIMOS surveys; else all.
        """
        if "redshift_secure" in self.extra:
            return "secure", self.extra["redshift_secure"].astype(bool)
        whole = self._whole_classes()
        if whole is not None and np.isin(_SECURE_CLASSES, whole).all():
            return "classes 3 and 4", np.isin(whole, _SECURE_CLASSES)
        return "all", np.ones(self.n_galaxies, bool)

    def truth_classes(self) -> dict[str, np.ndarray]:
        """Subsamples by quality of the known redshift, the largest classes first."""
        name, chosen = self.secure()
        found = {} if chosen.all() else {name: chosen}
        whole = self._whole_classes()
        if whole is not None:
            values, counts = np.unique(whole[np.isfinite(whole)], return_counts=True)
            largest = values[np.argsort(-counts, kind="stable")][:_MAX_CLASSES]
            found.update({f"class {value:g}": whole == value for value in sorted(largest)})
        return found

    def _whole_classes(self) -> np.ndarray | None:
        classes = self.extra.get("redshift_class")
        if classes is None or not np.issubdtype(classes.dtype, np.number):
            return None
        return np.floor(classes.astype(float))


def read_run_data(run_dir: Path, truth: Path | None = None, max_galaxies: int = _MAX_GALAXIES) -> RunData:
    """Read what is finished of a run.

    Args:
        run_dir: the run; it may still be going on.
        truth: Parquet table of `object_id` and known values; default, the run's own truth columns.
        max_galaxies: with more than this, blocks are left out at even steps.

    Raises:
        LedgerError: the folder holds no run, or nothing of it is finished.
        SchemaError: the truth table has no object_id.
    """
    plan = Plan.read(run_dir / "plan.parquet")
    done, failed = Ledger(run_dir).facts(plan.blocks())
    blocks = _thin([block for block in plan.blocks() if block.key in done], max_galaxies)
    if not blocks:
        raise LedgerError(
            "at least one finished block", "none", str(run_dir), "Run `popcosmos-hpc fit` first."
        )
    arrays = _read_posteriors(run_dir, blocks)
    photometry, extra, bands = _read_photometry(run_dir, blocks)
    attributes: dict[str, Any] = dict(open_partition(run_dir, blocks[0].partition).attrs)
    names = tuple(attributes["quantity"])
    return RunData(
        run_dir=run_dir,
        config=yaml.safe_load((run_dir / "run.yaml").read_text(encoding="utf-8")),
        fingerprint=json.loads((run_dir / "fingerprint.json").read_text(encoding="utf-8")),
        plan=plan,
        status=campaign_status(run_dir),
        done=done,
        failed=failed,
        blocks=tuple(blocks),
        bands=bands,
        names=names,
        units=tuple(attributes.get("quantity_unit", [""] * len(names))),
        photometry=photometry,
        summary=arrays["summary"],
        redshift_quantiles=arrays["redshift_quantiles"],
        certificate=dict(zip(attributes["certificate"], arrays["certificate"].T, strict=True)),
        truth=_known_values(extra, names)
        if truth is None
        else _read_truth(truth, photometry["object_id"], names),
        extra=extra,
    )


def _thin(blocks: list[Block], max_galaxies: int) -> list[Block]:
    total = sum(block.n_galaxies for block in blocks)
    return blocks[:: max(1, -(-total // max_galaxies))]


def _read_posteriors(run_dir: Path, blocks: list[Block]) -> dict[str, np.ndarray]:
    names = ("summary", "redshift_quantiles", "certificate")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for block in blocks:
        found = read_posterior(run_dir, block.partition, names, block.start, block.stop)
        for name in names:
            parts[name].append(found[name])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _read_photometry(run_dir: Path, blocks: list[Block]) -> tuple[dict, dict, tuple[str, ...]]:
    attributes: dict[str, Any] = dict(open_photometry(run_dir, blocks[0].partition).attrs)
    bands = tuple(attributes["bands"])
    extra_names = passthrough_names(run_dir, blocks[0].partition)
    names = ("object_id", "flux", "flux_err", "state")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, *extra_names)}
    columns, partition = {}, None
    for block in blocks:
        if block.partition != partition:
            partition = block.partition
            columns = read_columns(run_dir, partition, parts)
        for name, values in columns.items():
            parts[name].append(values[block.start : block.stop])
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    return {name: arrays[name] for name in names}, {name: arrays[name] for name in extra_names}, bands


def _known_values(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Truth by the name of its quantity: redshift_spec, truth_<name>, <name>_true, mass_published."""
    found = {}
    for column, values in columns.items():
        quantity = column.removeprefix("truth_").removesuffix("_true")
        if quantity in names and quantity != column and np.issubdtype(values.dtype, np.number):
            found[quantity] = values.astype(float)
    if "redshift_spec" in columns and "redshift" in names:
        found["redshift"] = columns["redshift_spec"].astype(float)
    if _PUBLISHED_MASS in columns and "log10_mass" in names:
        mass = columns[_PUBLISHED_MASS].astype(float)
        good = (mass > 0) & (columns.get(f"{_PUBLISHED_MASS}_flag", np.ones_like(mass)) == 1)
        found["log10_mass"] = np.where(good, np.log10(np.where(good, mass, 1.0)), np.nan)
    return found


def _read_truth(path: Path, object_id: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    if "object_id" not in table.column_names:
        raise SchemaError(
            "a column object_id", ", ".join(table.column_names), str(path), "Rename the identifier."
        )
    known = table["object_id"].to_numpy()
    order = np.argsort(known)
    place = np.clip(np.searchsorted(known[order], object_id), 0, max(len(known) - 1, 0))
    rows = order[place] if len(known) else np.zeros(0, int)
    matched = known[rows] == object_id if len(known) else np.zeros(len(object_id), bool)
    columns = {}
    for name in table.column_names:
        values = table[name].to_numpy(zero_copy_only=False)
        if name != "object_id" and np.issubdtype(values.dtype, np.number) and len(known):
            columns[name] = np.where(matched, values[rows].astype(float), np.nan)
    return _known_values(columns, names)
