import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.canonical import (
    BAD_COORDINATE,
    BAD_ID,
    NOT_SELECTED,
    canonical_schema,
    canonicalise,
    count_states,
)
from popcosmos_hpc.survey.preset import load_preset, preset_from_dict
from tests import survey_tables

UJY = 1 / 3.631
MISSING, OBSERVED, LIMIT = BandState.MISSING, BandState.OBSERVED, BandState.LIMIT


def run(changes=None, n=4, **preset):
    data = survey_tables.columns(n)
    for name, values in (changes or {}).items():
        data[name] = values
    return canonicalise(survey_tables.two_bands(**preset), pa.table(data))


def one_band(values, errors, extra=None, **band):
    """States, fluxes and errors of one band."""
    table = pa.table(
        {
            "id": range(len(values)),
            "ra": [1.0] * len(values),
            "dec": [1.0] * len(values),
            "f": values,
            "e": errors,
            **(extra or {}),
        }
    )
    settings = {
        key: band.pop(key)
        for key in ("missing_values", "nondetection_values", "bad_errors", "ebv")
        if key in band
    }
    columns = {} if "mag" in band else {"flux": "f"}
    preset = preset_from_dict(
        {
            "name": "x",
            "id": "id",
            "ra": "ra",
            "dec": "dec",
            "bands": [{"name": "b", "err": "e", **columns, **band}],
            **settings,
        }
    )
    out = canonicalise(preset, table)
    return [out.table[f"{kind}_b"].to_numpy() for kind in ("state", "flux", "flux_err")] + [out]


def test_clean_rows_are_kept_with_exact_ids_and_units():
    out = run()
    assert out.table.schema == canonical_schema(survey_tables.two_bands())
    assert out.table["object_id"].to_pylist() == [survey_tables.FIRST_ID + k for k in range(4)]
    assert out.table["flux_g"].to_numpy() == pytest.approx(survey_tables.columns(4)["F_g"] * UJY, rel=1e-6)
    assert (
        out.table["redshift_spec"].type == pa.float64() and np.isnan(out.table["redshift"].to_numpy()).all()
    )
    assert out.rejects.num_rows == 0 and count_states(out.table).tolist() == [[0, 4, 0, 0]] * 2


def test_bad_rows_are_refused_with_their_reason_and_the_rest_is_kept():
    changes = {
        "RA": np.array([np.nan, 10.0, 10.0, 370.0]),
        "DEC": np.array([0.0, 90.001, -90.0, 0.0]),
    }
    out = run(changes)
    assert out.row.tolist() == [2] and out.rejects["row"].to_pylist() == [0, 1, 3]
    assert set(out.rejects["reason"].to_pylist()) == {BAD_COORDINATE}
    out = run(
        {"ID": pa.array([1, None, 3, 4]), "zspec": np.array([0.5, 0.5, 0.1, 0.5])}, quality="zspec > 0.3"
    )
    assert out.rejects["reason"].to_pylist() == [BAD_ID, NOT_SELECTED]
    assert out.table.num_rows + out.rejects.num_rows == 4


def test_negative_right_ascension_wraps():
    out = run({"RA": np.array([-0.5, -1e-20, 359.9, 0.0])})
    assert out.table["ra"].to_pylist() == [359.5, 0.0, 359.9, 0.0]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (pa.array([1.0, 2.5, 2.0**53, float("nan")]), [1]),
        (pa.array([2**63, 5, 6, 7], pa.uint64()), [5, 6, 7]),
        (pa.array(["9007199254740993", "x12", " 7 ", None]), [9007199254740993, 7]),
        (pa.array(["99999999999999999999", "-3", "+4", "1.0"]), [-3, 4]),
    ],
)
def test_only_exact_integers_are_ids(ids, kept):
    out = run({"ID": ids})
    assert out.table["object_id"].to_pylist() == kept and out.rejects.num_rows == 4 - len(kept)


def test_text_ids_can_be_folded_into_63_bits():
    out = run({"ID": pa.array(["KiDS J1", "KiDS J2", None, "KiDS J1"])}, id={"column": "ID", "hash": True})
    first, second, again = out.table["object_id"].to_pylist()
    assert (
        first == again != second and min(first, second) >= 0 and out.rejects["reason"].to_pylist() == [BAD_ID]
    )


def test_states_of_fluxes():
    values = [1.0, -2.0, -99.0, 99.0, None, float("inf"), 1.0, 1.0, 1.0, 1.0]
    errors = [0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.0, -1.0, float("inf"), None]
    codes = {"missing_values": [-99], "nondetection_values": [99], "limit_sigma": 2.0}
    state, flux, error, out = one_band(values, errors, **codes)
    assert state.tolist() == [
        OBSERVED,
        OBSERVED,
        MISSING,
        LIMIT,
        MISSING,
        OBSERVED,
        OBSERVED,
        OBSERVED,
        OBSERVED,
        MISSING,
    ]
    assert flux[:2].tolist() == [1.0, -2.0] and (flux[3], error[3]) == (1.0, 0.5)
    assert np.isinf(flux[5]) and error[6:8].tolist() == [0.0, -1.0]
    assert np.isnan(flux[state == MISSING]).all()
    assert count_states(out.table).tolist() == [[3, 6, 1, 4]] and out.rejects.num_rows == 0
    state, *_ = one_band(values, errors, bad_errors="missing", **codes)
    assert state.tolist() == [OBSERVED, OBSERVED, MISSING, LIMIT] + [MISSING] * 6


def test_codes_match_in_single_precision():
    state, *_ = one_band(
        np.array([-99.9, 1.0], np.float32), np.array([1.0, -99.9], np.float32), missing_values=[-99.9]
    )
    assert state.tolist() == [MISSING, MISSING]


def test_magnitudes_with_a_limit_column_of_stated_significance():
    extra = {"lim": [25.0, 25.0, -99.0]}
    state, flux, error, _ = one_band(
        [22.5, 99.0, 99.0],
        [0.1, 99.0, 99.0],
        extra,
        mag="f",
        limit="lim",
        limit_sigma=5.0,
        missing_values=[-99],
        nondetection_values=[99],
    )
    assert state.tolist() == [OBSERVED, LIMIT, MISSING]
    assert flux[:2] == pytest.approx([1.0, 0.1]) and error[:2] == pytest.approx([np.log(10) / 25, 0.02])


def test_a_non_detected_magnitude_without_a_limit_is_missing():
    state, *_ = one_band([99.0], [99.0], mag="f", nondetection_values=[99])
    assert state.tolist() == [MISSING]


def test_vega_offsets_flags_and_extinction():
    state, flux, _, _ = one_band(
        [22.5, 22.5, 22.5],
        [0.1] * 3,
        {"flag": [0, 4, None], "ebv": [0.1, 0.1, 0.1]},
        mag="f",
        ab_offset=2.5,
        flag="flag",
        extinction={"coefficient": 2.5},
        ebv="ebv",
    )
    assert state.tolist() == [OBSERVED, MISSING, MISSING] and flux[0] == pytest.approx(0.1 * 10**0.1)
    _, flux, error, _ = one_band([-1.0], [1.0], {"A": [0.25]}, extinction={"column": "A"})
    assert flux[0] == pytest.approx(-(10**0.1)) and error[0] == pytest.approx(10**0.1)


def test_unknown_extinction_is_flagged_not_hidden():
    state, flux, *_ = one_band([1.0], [1.0], {"A": [None]}, extinction={"column": "A"})
    assert state.tolist() == [OBSERVED] and np.isnan(flux[0])


def test_known_redshift_with_quality_and_error_column():
    redshift = {"column": "zspec", "err": "E_r", "quality": "flag_g == 0"}
    changes = {
        "zspec": np.array([0.5, 0.5, -99.0, 0.5]),
        "flag_g": np.array([0, 1, 0, 0], np.int32),
        "E_r": np.array([0.01, 0.01, 0.01, -1.0]),
    }
    out = run(changes, redshift=redshift)
    assert out.table["redshift"].to_numpy() == pytest.approx([0.5, np.nan, np.nan, 0.5], nan_ok=True)
    assert out.table["redshift_err"].to_numpy() == pytest.approx([0.01, np.nan, np.nan, 0.0], nan_ok=True)


def test_kids_codes_flags_limits_and_text_ids():
    preset = load_preset("kids_dr4")
    table = {name: [1.0] * 4 for name in preset.required_columns()}
    table |= {
        "ID": [f"KiDSDR4 J0000{k}" for k in range(4)],
        "SG2DPHOT": [0, 0, 0, 1],
        "KIDS_TILE": ["K_1"] * 4,
    }
    for band in preset.bands:
        table |= {band.mag: [22.5, 99.0, -99.0, 22.5], band.err: [0.1, 99.0, -99.0, 0.1]}
        table |= {band.flag: [0, 0, 0, 0], band.limit: [25.0] * 4}
    table["FLAG_GAAP_Ks"] = [1, 1, 1, 1]
    out = canonicalise(preset, pa.table(table))
    assert out.table["state_u"].to_pylist() == [OBSERVED, LIMIT, MISSING]
    assert out.table["flux_u"].to_pylist()[:2] == pytest.approx([1.0, 0.1])
    assert out.table["state_Ks"].to_pylist() == [MISSING] * 3
    assert out.table["kids_id"].to_pylist()[1] == "KiDSDR4 J00001" and out.rejects.num_rows == 1


def test_no_rows():
    out = canonicalise(survey_tables.two_bands(), pa.table(survey_tables.columns(0)))
    assert out.table.num_rows == 0 and out.table.schema == canonical_schema(survey_tables.two_bands())


numbers = st.one_of(st.none(), st.floats(width=64), st.sampled_from([-99.0, 99.0, 0.0]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8))
def test_no_row_raises_and_none_is_lost(rows):
    ra, dec, flux, error = (pa.array(column, pa.float64()) for column in zip(*rows, strict=True))
    table = pa.table({"id": range(len(rows)), "ra": ra, "dec": dec, "f": flux, "e": error})
    preset = preset_from_dict(
        {
            "name": "x",
            "id": "id",
            "ra": "ra",
            "dec": "dec",
            "missing_values": [-99],
            "nondetection_values": [99],
            "bands": [{"name": "b", "flux": "f", "err": "e"}],
        }
    )
    out = canonicalise(preset, table)
    assert out.table.num_rows + out.rejects.num_rows == len(rows)
    state = out.table["state_b"].to_numpy()
    assert np.isfinite(out.table["ra"].to_numpy()).all() and np.isin(state, list(BandState)).all()
    assert (out.table["flux_err_b"].to_numpy()[state == LIMIT] > 0).all()
