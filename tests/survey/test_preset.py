from pathlib import Path

import pytest
import yaml

from popcosmos_hpc.errors import ConfigurationError, SchemaError
from popcosmos_hpc.survey.preset import load_preset, preset_from_dict
from tests import survey_tables

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "surveys").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_preset_loads_by_name_and_path(path):
    preset = load_preset(path.stem)
    assert preset.name == path.stem and load_preset(path) == preset


def change(**changes):
    content = survey_tables.two_bands().model_dump(exclude_none=True) | changes
    return preset_from_dict(content)


def test_unknown_keys_name_the_nearest_legal_one(tmp_path):
    with pytest.raises(ConfigurationError, match="'quallity' \\(nearest: 'quality'\\)"):
        change(quallity="x")
    with pytest.raises(ConfigurationError, match="'flg' \\(nearest: 'flag'\\)"):
        change(bands=[{"name": "g", "flux": "a", "err": "b", "flg": "c"}])
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "bands": [], "ra": "a", "dec": "b"}))
    with pytest.raises(ConfigurationError, match=r"p\.yaml"):
        load_preset(path)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigurationError, match="nearest: 'zcosmos'"):
        load_preset("zcosmo")


@pytest.mark.parametrize(
    "changes",
    [
        {"bands": [{"name": "g", "err": "b"}]},
        {"bands": [{"name": "g", "flux": "a", "mag": "c", "err": "b"}]},
        {"bands": [{"name": "g", "flux": "a", "err": "b"}] * 2},
        {"bands": [{"name": "g", "flux": "a", "err": "b", "unit": "mag"}]},
        {"bands": [{"name": "g", "flux": "a", "err": "b", "unit": "parsec"}]},
        {"bands": [{"name": "g", "flux": "a", "err": "b", "unit": "count"}]},
        {"bands": [{"name": "g", "flux": "a", "err": "b", "extinction": {"coefficient": 3.1}}]},
        {
            "bands": [{"name": "g", "flux": "a", "err": "b", "extinction": {"column": "A"}}],
            "already_dereddened": True,
        },
        {"bands": [{"name": "g", "flux": "a", "err": "b", "softening": 1e-10}]},
        {"quality": "flag = 0"},
    ],
)
def test_contradictions_are_refused_at_load(changes):
    with pytest.raises(ConfigurationError):
        change(**changes)


def test_a_missing_column_names_the_nearest_one():
    preset = survey_tables.two_bands()
    present = dict.fromkeys(preset.required_columns())
    del present["E_g"]
    present["e_g"] = None
    with pytest.raises(SchemaError, match=r"tile.fits: expected column 'E_g'.*nearest: 'e_g'"):
        preset.check_table(present, "tile.fits")


def test_a_unit_that_contradicts_the_preset_is_refused():
    preset = survey_tables.two_bands()
    present = dict.fromkeys(preset.required_columns()) | {"F_g": "uJy", "RA": "degree"}
    preset.check_table(present, "tile.fits")
    for wrong in ({"F_g": "nJy"}, {"F_r": "mag"}, {"RA": "rad"}):
        with pytest.raises(SchemaError, match="unit"):
            preset.check_table(present | wrong, "tile.fits")


def test_patterns_of_passed_through_columns_are_resolved():
    preset = survey_tables.two_bands(passthrough=["truth_*", "zspec"])
    assert "truth_*" not in preset.required_columns()
    resolved = preset.resolve(["truth_N", "truth_redshift", "other"])
    assert [item.name for item in resolved.passthrough] == ["truth_N", "truth_redshift", "zspec"]
