import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.inference.sampler import SAMPLERS, build_sampler


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_builds_by_name_with_defaults(name):
    sampler = build_sampler(name)
    assert sampler.max_draws >= 200
    count = "n_chains" if name == "nuts" else "n_ensembles"
    assert getattr(build_sampler(name, **{count: 6}), count) == 6


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'smc'"):
        build_sampler("smcc")
    with pytest.raises(ConfigurationError, match="Did you mean 'n_particles'"):
        build_sampler("smc", particles=10)


@pytest.mark.parametrize(
    "settings",
    [{"n_particles": 7}, {"n_particles": 16.5}, {"n_moves": "many"}, {"keep": 2.0}, {"n_ensembles": True}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match="sampler smc"):
        build_sampler("smc", **settings)


def test_identifiers_differ():
    assert len({build_sampler(name).identifier for name in SAMPLERS}) == len(SAMPLERS)
