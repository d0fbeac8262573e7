"""Ten million mock galaxies on two cores: memory, rows, and what a reader of the catalog finds."""

import contextlib
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hats import read_hats

from tests import toy_run

N_GALAXIES = 10_000_000
MOST_BYTES = 4e9


def peak_memory(process: psutil.Process) -> float:
    """Largest resident memory [byte] of a process and all that it starts, summed, until it ends."""
    peak = 0.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        peak = max(peak, total)
        time.sleep(1.0)
    return peak


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_ten_million_galaxies_in_four_gigabytes(tmp_path, record_property):
    """`pytest --junitxml=FILE` keeps time, memory and disk, too."""
    catalog = tmp_path / "mock"
    arguments = ("mock", "kids", "--galaxies", N_GALAXIES, "--workers", 2, "--out", catalog)
    start = time.perf_counter()
    process = toy_run.start(*arguments)
    peak = peak_memory(psutil.Process(process.pid))
    record_property("seconds", time.perf_counter() - start)
    record_property("peak_bytes", peak)
    said, complaints = process.communicate()
    assert process.returncode == 0, complaints[-2000:]
    assert peak < MOST_BYTES, f"{peak / 1e9:.2f} GB"
    assert f"{N_GALAXIES} galaxies" in said
    found = read_hats(catalog)
    assert found.catalog_info.total_rows == N_GALAXIES
    files = sorted((catalog / "dataset").rglob("Npix=*.parquet"))
    record_property("disk_bytes", sum(file.stat().st_size for file in catalog.rglob("*") if file.is_file()))
    assert sum(pq.read_metadata(file).num_rows for file in files) == N_GALAXIES
    identifiers = np.concatenate(
        [
            pq.read_table(file, columns=["object_id"], partitioning=None)["object_id"].to_numpy()
            for file in files
        ]
    )
    assert len(np.unique(identifiers)) == N_GALAXIES
    some = pq.read_table(files[len(files) // 2], partitioning=None)
    assert np.all(some["flux_i"].to_numpy() > 1.0)  # i < 22.5 is one nanomaggy
    lsdb = pytest.importorskip("lsdb", reason="LSDB is an extra")
    cone = lsdb.open_catalog(catalog).cone_search(ra=200.0, dec=0.0, radius_arcsec=3600.0).compute()
    # Evenly spread: a circle of a degree holds its share, within 4.5 standard deviations of a Poisson count.
    share = N_GALAXIES * np.pi / np.degrees(np.degrees(_area()))
    assert abs(len(cone) - share) < 4.5 * np.sqrt(share)


def _area() -> float:
    from popcosmos_hpc.campaign.mock_config import load_mock_config

    return load_mock_config("kids").sky.footprint().area
