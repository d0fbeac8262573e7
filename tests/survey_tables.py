"""Small survey tables, written in every format that ingest reads."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from astropy.table import Table

from popcosmos_hpc.survey.preset import SurveyPreset, preset_from_dict

FIRST_ID = 2**60 + 1  # no float holds such an id


def two_bands(**changes) -> SurveyPreset:
    """A preset of two bands in uJy with codes, a flag and a passed-through redshift."""
    content = {
        "name": "two",
        "id": "ID",
        "ra": "RA",
        "dec": "DEC",
        "unit": "uJy",
        "missing_values": [-99],
        "nondetection_values": [99],
        "bands": [
            {"name": "g", "flux": "F_g", "err": "E_g", "flag": "flag_g"},
            {"name": "r", "flux": "F_r", "err": "E_r"},
        ],
        "passthrough": {"redshift_spec": "zspec"},
    }
    return preset_from_dict(content | changes)


def columns(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Clean rows in a patch of two degrees across the zero meridian."""
    rng = np.random.default_rng(seed)
    return {
        "ID": np.arange(n, dtype=np.int64) + FIRST_ID,
        "RA": np.mod(rng.uniform(-1, 1, n), 360.0),
        "DEC": rng.uniform(-1, 1, n),
        "F_g": np.rint(rng.normal(8, 8, n)).astype(np.float32) / 8,
        "E_g": np.full(n, 0.125, np.float32),
        "flag_g": np.zeros(n, np.int32),
        "F_r": rng.normal(2.0, 1.0, n),
        "E_r": np.full(n, 0.2),
        "zspec": rng.uniform(0, 1, n),
    }


def write(path: Path, data: dict[str, np.ndarray]) -> Path:
    """Write columns in the format that the suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(data), path)
    elif path.suffix == ".csv":
        pacsv.write_csv(pa.table(data), path)
    elif path.suffix == ".fits":
        Table(data).write(path)
    else:
        with h5py.File(path, "w") as file:
            for name, values in data.items():
                file[f"photometry/{name}"] = values
    return path
