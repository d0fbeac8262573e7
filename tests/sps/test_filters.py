import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.sps.filters import load_filter


def test_two_column_file(tmp_path, monkeypatch):
    (tmp_path / "x.res").write_text("# a curve\n4000 0\n4500 50.0\n5000, 100\n5500 50\n6000 0\n")
    monkeypatch.setenv("CURVES", str(tmp_path))
    band = load_filter("x", "$CURVES/x.res")
    assert band.transmission.max() == 1.0
    assert abs(band.pivot - 4987) < 10
    assert band.source == "x.res"
    assert band.sha256 == load_filter("y", str(tmp_path / "x.res")).sha256


def test_rows_may_come_in_any_order(tmp_path):
    (tmp_path / "x.res").write_text("5000 1\n4000 0\n6000 0\n4500 0.5\n5500 0.5\n")
    assert np.all(np.diff(load_filter("x", str(tmp_path / "x.res")).wave) > 0)


def test_tophat():
    band = load_filter("t", "tophat:5000:1000")
    assert band.wave[0] == 4500 and band.wave[-1] == 5500
    exact = np.sqrt(5000.0 * 1000.0 / np.log(5500 / 4500))
    assert np.isclose(band.pivot, exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file"),
        ("1 2\n", "three rows"),
        ("4000 0\n4500 0\n5000 0\n", "positive transmission"),
        ("400 0\n450 1\n500 0\n", "nanometres"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.res"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_filter("bad", str(path))


def test_named_filters():
    pytest.importorskip("sedpy", reason="astro-sedpy is not installed")
    pytest.importorskip("speclite", reason="speclite is not installed")
    assert abs(load_filter("r", "sedpy:hsc_r").pivot - 6214) < 2
    assert abs(load_filter("Z", "sedpy:vista_vircam_Z").pivot - 8805) < 10
    assert abs(load_filter("VIS", "speclite:Euclid-VIS").pivot - 7248) < 10
    # This file counts in nm.
    assert abs(load_filter("r", "speclite:lsst2023-r").pivot - 6208) < 1
    with pytest.raises(ConfigurationError, match="no_such"):
        load_filter("x", "sedpy:no_such")
