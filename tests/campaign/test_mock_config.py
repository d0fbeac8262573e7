import pytest
import yaml

from popcosmos_hpc.campaign.mock_config import MockConfig, load_mock_config
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.settings import parse_settings
from popcosmos_hpc.survey.footprint import Box, Cone, Pixels

BASE = {
    "name": "m",
    "n_galaxies": 10,
    "sky": "full",
    "model": {"bundle": "kids9"},
    "uncertainty": {"depths": {"r": 25.0}},
    "selection": [{"band": "r", "brighter_than": 24.0}],
}


def parse(**changes) -> MockConfig:
    return parse_settings(MockConfig, {**BASE, **changes}, "here")


def test_defaults_and_units():
    config = parse()
    assert config.seed == 1 and config.coverage == () and config.partition.max_rows == 250_000
    # A depth is `sigma` errors: 25 mag is 0.1 nanomaggies.
    assert config.uncertainty.flux_errors(("r",)) == pytest.approx([0.02])


@pytest.mark.parametrize(
    ("sky", "regions"),
    [
        ("full", (Pixels.full_sky(),)),
        ({"full": True}, (Pixels.full_sky(),)),
        ({"cone": {"ra": 10, "dec": -5, "radius": 2}}, (Cone(10, -5, 2),)),
        (
            {"boxes": [{"ra": [350, 10], "dec": [0, 5]}, {"ra": [20, 30], "dec": [0, 5]}]},
            (Box(350, 10, 0, 5), Box(20, 30, 0, 5)),
        ),
        ({"healpix": {"order": 2, "pixels": [3, 4]}}, (Pixels(2, (3, 4)),)),
    ],
)
def test_footprints(sky, regions):
    assert parse(sky=sky).sky.footprint().regions == regions


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sky": {}}, "one of full, cone, boxes, healpix"),
        ({"sky": {"full": True, "cone": {"ra": 0, "dec": 0, "radius": 1}}}, "not full and cone"),
        ({"sky": {"cone": {"ra": 0, "dec": 0, "radius": 0}}}, "greater than 0"),
        ({"sky": {"cone": {"ra": 0, "dec": 91, "radius": 1}}}, "sky.cone.dec"),
        ({"sky": {"boxes": []}}, "sky.boxes"),
        ({"sky": {"boxes": [{"ra": [10, 20], "dec": [5, 5]}]}}, "a box with an area"),
        ({"sky": {"boxes": [{"ra": [10, 10], "dec": [0, 5]}]}}, "a box with an area"),
        (
            {"sky": {"boxes": [{"ra": [0, 9], "dec": [0, 5]}, {"ra": [8, 20], "dec": [4, 6]}]}},
            "boxes that do not overlap",
        ),
        ({"sky": {"healpix": {"order": 1, "pixels": [48]}}}, "from 0 to 47"),
        ({"sky": {"healpix": {"order": 1, "pixels": []}}}, "pixels"),
        ({"sky": {"box": []}}, "one of the keys boxes, cone, full, healpix"),
        ({"n_galaxies": 0}, "n_galaxies"),
        ({"selection": [{"band": "r"}]}, "brighter_than, fainter_than or min_snr"),
        ({"selection": [{"band": "r", "brighter_than": 20, "fainter_than": 20}]}, "this range is empty"),
        ({"selection": [{"band": "r", "min_snr": -1}]}, "selection.0.min_snr"),
        ({"selection": [{"band": "r", "brighter": 20}]}, "Did you mean 'brighter_than'"),
        ({"coverage": [{"bands": ["r"], "missing_fraction": 1}]}, "less than 1"),
        ({"uncertainty": {"depths": {"r": 25.0}, "sigma": 0}}, "uncertainty.sigma"),
        ({"uncertainty": {"depth": {"r": 25.0}}}, "Did you mean 'depths'"),
        ({"uncertainty": {}}, "either depths or a bundle"),
        ({"uncertainty": {"depths": {"r": 25.0}, "bundle": "noise"}}, "either depths or a bundle"),
        ({"uncertainty": {"sigma": 5, "bundle": "noise"}}, "no sigma with a bundle"),
        ({"model": {"bundle": "kids9", "use_redshift": True}}, "no use_redshift"),
        ({"galaxies": 5}, "Did you mean 'n_galaxies'"),
    ],
)
def test_mistakes_are_refused_in_words(changes, words):
    with pytest.raises(ConfigurationError, match=words):
        parse(**changes)


def test_science_knows_what_the_galaxies_depend_on():
    base = parse().science()
    assert base == parse(name="other", partition={"max_rows": 10}, most_draws=5).science()
    assert base == parse(model={"bundle": "elsewhere"}).science(), "bundles count by their hashes"
    errors = [parse(uncertainty={"bundle": name}).science() for name in ("one", "other")]
    assert errors[0] == errors[1] != base
    for changes in (
        {"seed": 2},
        {"n_galaxies": 11},
        {"selection": []},
        {"uncertainty": {"depths": {"r": 24}}},
    ):
        assert base != parse(**changes).science()


def test_files(tmp_path):
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(BASE))
    assert load_mock_config(tmp_path / "m.yaml") == parse()
    with pytest.raises(ConfigurationError, match="shipped mocks: kids"):
        load_mock_config("kid")
    assert MockConfig.model_validate_json(parse().model_dump_json()) == parse()
