"""Closure: a known population that differs from the start is found again from 26 bands of photometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.noise import ConstantUncertainty
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.training.population import Forward, PopulationSchedule, Selection, train_population
from popcosmos_hpc.training.prior import PriorRecipe, train_prior
from popcosmos_hpc.training.published import find_release, read_emulator
from popcosmos_hpc.training.reference_population import draw_reference

MASS_SHIFT, DUST_FACTOR = 0.1, 0.6  # dex; of the diffuse optical depth
LIMIT = {"hsc_i": 24.0}
START = PriorRecipe(name="start", width=128, depth=3, n_rounds=80, batch_size=512, average=0.998, seed=2)
SCHEDULE = PopulationSchedule(
    n_mock=4096, n_data=12000, n_directions=128, n_rounds=30, learning_rate=1.5e-3, average=0.99
)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_mass_star_formation_and_redshift_are_recovered(shared):
    """The start lacks 0.1 dex of mass and has dust deeper by 1 / 0.6; nothing but fluxes goes in."""
    emulator = read_emulator(find_release(shared / "data" / "pop_cosmos_release"))
    softening = np.load(
        shared / "data" / "pop_cosmos_release" / "photulators_stacked.npz", allow_pickle=False
    )["f_b"].reshape(-1)
    prior = train_prior(draw_reference(60_000, 1, 24.4, "i"), POP_COSMOS, START)
    likelihood = Likelihood(np.ones(len(emulator.bands)), 0.01, "student_t", 4.0)
    forward = Forward(
        GalaxyModel(emulator, likelihood, prior), ConstantUncertainty(emulator.bands, softening),
        jnp.zeros(len(emulator.bands)), jnp.zeros(0), Selection.from_magnitudes(LIMIT, emulator.bands),
    )  # fmt: skip
    truth = draw_reference(80_000, 5, 24.8, "i").copy()
    truth[:, POP_COSMOS.index("N")] -= 2.5 * MASS_SHIFT
    truth[:, POP_COSMOS.index("dust2")] *= DUST_FACTOR
    flux = observe(forward.galaxy, truth, softening, 100)
    seen = forward.selection.passes(flux)
    errors = np.broadcast_to(softening, flux[seen].shape)
    trained, found = train_population(forward, flux[seen], errors, SCHEDULE)
    expected = quantities(truth[seen])
    keys = jax.random.split(jax.random.PRNGKey(9), 32_000)
    one = jax.jit(jax.vmap(lambda k: trained.galaxy.theta(trained.galaxy.prior.sample_base(k))))
    drawn = np.concatenate([np.asarray(one(keys[i : i + 4000])) for i in range(0, 32_000, 4000)])
    passes = forward.selection.passes(observe(forward.galaxy, drawn, softening, 7))
    got = quantities(drawn[passes])
    assert found["end"] < 2.0 * found["floor"] < 0.02 * found["start"]
    for name in ("log_mass", "log_sfr", "redshift"):
        shift = (got[name].mean() - expected[name].mean()) / expected[name].std()
        assert abs(shift) < 0.1, (name, shift)
        assert abs(got[name].std() / expected[name].std() - 1) < 0.1, name
    # Depth, slope and birth clouds of the dust trade against each other: a quarter of the way is left.
    assert abs(got["dust2"].mean() - expected["dust2"].mean()) < 0.35 * expected["dust2"].std()


def observe(galaxy: GalaxyModel, theta: np.ndarray, errors: np.ndarray, seed: int) -> np.ndarray:
    """Noisy fluxes of parameters."""

    def one(t, key):
        predicted, variance = galaxy.moments(t)
        noise = galaxy.likelihood.standard_noise(key, predicted.shape)
        return predicted + noise * jnp.sqrt(jnp.asarray(errors) ** 2 + variance)

    many = jax.jit(jax.vmap(one))
    parts = [theta[i : i + 8000] for i in range(0, len(theta), 8000)]
    keys = [jax.random.split(jax.random.PRNGKey(seed + i), len(part)) for i, part in enumerate(parts)]
    return np.concatenate([np.asarray(many(jnp.asarray(p), k)) for p, k in zip(parts, keys, strict=True)])


def quantities(theta: np.ndarray) -> dict[str, np.ndarray]:
    emulator = load_bundle("kids9").emulator()
    derived = np.asarray(jax.jit(jax.vmap(emulator.derived))(jnp.asarray(theta)))
    column = lambda name: derived[:, emulator.derived_names.index(name)]  # noqa: E731
    return {
        "log_mass": column("log10_mass"),
        "log_sfr": column("log10_sfr_100myr"),
        "dust2": theta[:, POP_COSMOS.index("dust2")],
        "redshift": theta[:, POP_COSMOS.index("redshift")],
    }
