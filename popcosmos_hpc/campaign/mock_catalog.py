"""Mock catalogs of any size: planned on the sky first, then written partition by partition.

Galaxies are numbered along the HEALPix curve, so that a partition is a range of numbers. What a file holds
follows from the seed and these numbers; any worker can write it, in any order, and writes the same bytes.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

import popcosmos_hpc
from popcosmos_hpc.campaign.cluster import map_jobs
from popcosmos_hpc.campaign.fingerprint import digest_of
from popcosmos_hpc.campaign.mock_config import MockConfig
from popcosmos_hpc.campaign.mock_task import CHUNK_ROWS, Portion, inspect_survey, write_portions
from popcosmos_hpc.campaign.partial import finish_partial, new_folder, open_partial
from popcosmos_hpc.campaign.progress import Progress
from popcosmos_hpc.campaign.worker import worker_environment
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.footprint import Cells
from popcosmos_hpc.survey.hats_writer import partition_file, write_metadata
from popcosmos_hpc.survey.plan import HEALPIX_ORDER, make_partitions, pixel_range

logger = logging.getLogger(__name__)
Format = Literal["hats", "parquet"]
_SETTINGS = "mock.yaml"


@dataclass(frozen=True)
class MockResult:
    """What was made.

    Args:
        catalog: its folder.
        n_galaxies: galaxies in it.
        n_candidates: galaxies of the population that were drawn for them.
        n_partitions: files.
    """

    catalog: Path
    n_galaxies: int
    n_candidates: int
    n_partitions: int

    @property
    def detected_fraction(self) -> float:
        """Share of the population that is detected."""
        return self.n_galaxies / self.n_candidates


def make_mock(
    config: MockConfig, out_dir: str | Path, client: Any = None, file_format: Format = "hats"
) -> MockResult:
    """Draw a mock catalog; stopped and called again, it goes on where it was.

    Args:
        config: settings.
        out_dir: the catalog to write; must not exist. Until it is whole it lies in a hidden folder beside.
        client: Dask client; None works in this process.
        file_format: `hats`, a catalog that LSDB opens and `plan` takes; or `parquet`, plain files of the
            same rows.

    Raises:
        ConfigurationError: a setting does not fit the bundle, no galaxy passes the selection, a pixel holds
            more than `max_rows`, or `out_dir` exists.
        BundleError: a bundle is missing or damaged.
    """
    out = new_folder(out_dir)
    if client is None:  # before JAX starts its device
        os.environ.update(worker_environment(1))
    settings = config.model_dump_json()
    portions = plan_portions(config, file_format)
    rate, identity = next(map_jobs(client, inspect_survey, [(settings,)]))
    logger.info("one galaxy in %.3g of the population is detected", 1 / rate)
    scratch = open_partial(
        out, identity | {"partition": config.partition.model_dump(), "format": file_format}
    )
    most_draws = int(min(1000 / rate, 2**30))
    jobs = [(settings, str(scratch), group, most_draws) for group in _grouped(portions)]
    progress, n_candidates = Progress(config.n_galaxies, 0, "drawing"), 0
    for n_rows, n_tried in map_jobs(client, write_portions, jobs):
        n_candidates += n_tried
        progress.advance(n_rows)
    progress.close()
    _finish(config, scratch, out, file_format, [item.partition for item in portions], n_candidates, identity)
    return MockResult(out, config.n_galaxies, n_candidates, len(portions))


def plan_portions(config: MockConfig, file_format: Format = "hats") -> list[Portion]:
    """Divide a mock catalog into partitions, in order along the HEALPix curve.

    Raises:
        ConfigurationError: the footprint is empty, or a pixel holds more than `partition.max_rows`.
    """
    cells, counts = config.sky.footprint().counts(config.n_galaxies, config.seed)
    order = min(cells.order, config.partition.highest_order)
    pixel = cells.pixel >> 2 * (cells.order - order)
    histogram = np.bincount(pixel, weights=counts, minlength=12 * 4**order).astype(np.int64)
    partitions = make_partitions(histogram, order, config.partition.max_rows)
    return list(_portions(partitions, cells, counts, file_format))


def _portions(
    partitions: list[Partition], cells: Cells, counts: np.ndarray, file_format: Format
) -> Iterator[Portion]:
    held, first = counts > 0, 0
    pixel, whole, counts = cells.pixel[held], cells.whole[held], counts[held]
    shift = 2 * (HEALPIX_ORDER - cells.order)
    for number, partition in enumerate(partitions):
        low, high = np.searchsorted(pixel, [end >> shift for end in pixel_range(partition)])
        file = f"part_{number:06d}.parquet"
        if file_format == "hats":
            file = partition_file(Path(), partition).as_posix()
        here = Cells(cells.order, pixel[low:high], whole[low:high])
        yield Portion(partition, file, first, here, counts[low:high])
        first += partition.n_galaxies


def _grouped(portions: list[Portion]) -> Iterator[tuple[Portion, ...]]:
    """Neighbours that are small are drawn together, for few galaxies fill no batch."""
    group: list[Portion] = []
    for portion in portions:
        if group and sum(p.partition.n_galaxies for p in (*group, portion)) > CHUNK_ROWS:
            yield tuple(group)
            group = []
        group.append(portion)
    yield tuple(group)


def _finish(
    config: MockConfig,
    scratch: Path,
    out: Path,
    file_format: Format,
    partitions: list[Partition],
    n_candidates: int,
    identity: dict[str, Any],
) -> None:
    if file_format == "hats":
        facts = {
            "popcosmos_mock": config.name,
            "popcosmos_version": popcosmos_hpc.__version__,
            "popcosmos_seed": config.seed,
            "popcosmos_bundle": identity["bundle"],
            "popcosmos_fingerprint": digest_of(identity),
            "popcosmos_detected_fraction": f"{config.n_galaxies / n_candidates:.6g}",
        }
        write_metadata(scratch, config.name, partitions, facts)
    with replace_atomically(scratch / _SETTINGS) as partial:
        partial.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    finish_partial(scratch, out)
