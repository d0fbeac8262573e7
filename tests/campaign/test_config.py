from pathlib import Path

import pytest
import yaml

from popcosmos_hpc.config import load_config, parse_config
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.settings import find_config

BASE = {"name": "a", "survey": "s", "input": {"path": "catalog"}, "model": {"bundle": "b"}}
REPOSITORY = Path(__file__).resolve().parents[2]


def merged(**changes):
    return {**BASE, **changes}


def test_defaults_resolve_and_reload():
    config = parse_config(merged(retry={"backoff": "1 min"}), "here")
    assert config.retry.backoff == 60
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.resolved())), "there")
    assert again == config and again.hash() == config.hash()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (merged(sedd=2), ["run.yaml: sedd", "Did you mean 'seed'?"]),
        (merged(block={"sise": 3}), ["run.yaml: block.sise", "Did you mean 'size'?"]),
        (merged(model={"bundle": "b", "likelihood": {"famly": "x"}}), ["model.likelihood.famly", "'family'"]),
        (merged(model={}), ["model.bundle", "required key"]),
        (merged(block={"size": "many"}), ["block.size", "'many'"]),
        (merged(retry={"backoff": "2 kg"}), ["retry.backoff", "units of s"]),
        (merged(retry={"backoff": 2}), ["retry.backoff", "with its unit"]),
        (merged(executor={"name": "serial", "workers": 4}), ["executor", "one worker"]),
        (merged(block={"size": 4}, sampler={"batch_size": 8}), ["batch_size", "block.size"]),
        (merged(model={"bundle": "b", "likelihood": {"family": "gaussian", "nu": 2}}), ["no nu"]),
        (merged(model={"bundle": "b", "likelihood": {"error_floor": 3.0}}), ["fraction"]),
        (merged(model={"bundle": "b", "bands": ["u"], "likelihood": {"zero_points": {"g": 1}}}), ["'g'"]),
        (merged(model={"bundle": "b", "bands": ["u", "u"]}), ["without repeats"]),
        (merged(executor="nowhere"), ["clusters", "nowhere"]),
        ([1, 2], ["a mapping"]),
    ],
)
def test_mistakes_are_named(settings, words):
    with pytest.raises(ConfigurationError) as caught:
        parse_config(settings, "run.yaml")
    for word in words:
        assert word in str(caught.value)


def test_hash_ignores_where_things_run():
    one = parse_config(BASE, "x")
    same = parse_config(merged(name="b", executor="local", input={"path": "elsewhere"}), "x")
    other = parse_config(merged(seed=2), "x")
    assert one.hash() == same.hash() != other.hash()


def test_sampler_settings_pass_through():
    config = parse_config(merged(sampler={"name": "smc", "n_particles": 64}), "x")
    assert config.sampler.settings == {"n_particles": 64}
    assert config.science()["sampler.n_particles"] == 64


def test_not_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: [1,")
    with pytest.raises(ConfigurationError, match="a YAML file"):
        load_config(path)
    with pytest.raises(ConfigurationError, match="one of the shipped runs"):
        find_config("runs", "no_such_run")


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/runs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_runs_load(path):
    assert load_config(path).name


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/clusters").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_clusters_load(path):
    settings = yaml.safe_load(path.read_text())
    assert parse_config(merged(executor=settings), str(path)).executor.name


def test_shipped_names_match_files():
    for path in (REPOSITORY / "configs/runs").glob("*.yaml"):
        assert load_config(path.stem).name == path.stem


def test_every_fitted_band_needs_an_error_floor():
    from popcosmos_hpc.campaign.worker import _per_band
    from popcosmos_hpc.config import LikelihoodConfig

    settings = LikelihoodConfig(error_floor={"g": 0.02}, zero_points={"r": 1.1})
    with pytest.raises(ConfigurationError, match="none for r"):
        _per_band(settings, ("g", "r"))
    factors, floors = _per_band(LikelihoodConfig(error_floor={"g": 0.02, "r": 0.0}), ("g", "r"))
    assert factors == [1.0, 1.0] and floors == [0.02, 0.0]
