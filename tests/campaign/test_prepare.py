"""What an earlier attempt leaves in a run directory."""

import numpy as np
import zarr

from popcosmos_hpc.survey.photometry_store import read_columns, store_path
from popcosmos_hpc.survey.plan import Plan
from tests import toy_run


def test_plan_cut_short_leaves_no_photometry_to_the_next(tmp_path):
    run = toy_run.planned(tmp_path / "run")
    partition = Plan.read(run / "plan.parquet").partitions[0]
    expected = read_columns(run, partition, ["flux"])["flux"]
    zarr.open_group(store_path(run, partition), mode="r+")["flux"][:] = -1.0  # of an older catalog
    (run / "fingerprint.json").unlink()
    (run / "photometry" / "notes.txt").touch()
    toy_run.planned(run)
    assert np.array_equal(read_columns(run, partition, ["flux"])["flux"], expected, equal_nan=True)
    assert (run / "photometry" / "notes.txt").exists()
