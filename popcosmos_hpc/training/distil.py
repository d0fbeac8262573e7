"""One network for all bands, trained on the published emulators: cheaper, and known to be as good.

The published set has a network per band. One shared network that has seen the same physics as features
costs a fraction of that. Only the photometry is distilled; line corrections and surviving mass stay the
published ones.
"""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

import popcosmos_hpc
from popcosmos_hpc.model.features import continuum_features
from popcosmos_hpc.model.network import Network, initial_network
from popcosmos_hpc.model.photulator import PhotulatorEmulator, SharedPhotometry
from popcosmos_hpc.training.accuracy import accuracy_table, redshift_edges
from popcosmos_hpc.training.fit import Schedule, train
from popcosmos_hpc.training.recipe_file import read_recipe
from popcosmos_hpc.training.simulation import draw_parameters

logger = logging.getLogger(__name__)

_FAINT = 20.0  # mag per Msun: fainter magnitudes are beyond the Lyman limit, and no galaxy shows them
_SOFT = 0.01  # mag: errors below this are punished quadratically
_UNSEEN = 17.0  # mag per Msun: photometry from here on hardly counts
_USUAL_N = 20.0  # of 1e10 Msun at redshift 1, roughly
_PIECE = 2048  # draws evaluated at a time
_TEST_STREAM = 10_000_000


class DistilRecipe(BaseModel):
    """How the shared network is trained.

    Attributes:
        name: of the bundle.
        description: for people.
        width: units per hidden layer.
        depth: hidden layers.
        n_rounds: rounds over the draws that are held.
        batch_size: draws per gradient step.
        learning_rate: peak of the cosine.
        average: decay per step of the averaged weights.
        n_draws: held at a time.
        n_groups: parts of them, of which one is drawn anew each round.
        n_test: held-out draws of the accuracy table.
        seed: of draws and weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    width: int = Field(256, ge=1)
    depth: int = Field(4, ge=1)
    n_rounds: int = Field(200, ge=1)
    batch_size: int = Field(1000, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.999, ge=0, lt=1)
    n_draws: int = Field(400_000, ge=100)
    n_groups: int = Field(20, ge=1)
    n_test: int = Field(20_000, ge=100)
    seed: int = 1


def load_distil_recipe(path: Path | str) -> DistilRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: the file is missing or says something unknown.
    """
    return read_recipe(path, DistilRecipe, "bundle import pop-cosmos --distil")


class Draws:
    """Draws of the published training ranges, with the features and the published magnitudes.

    They are held in groups, of which one is replaced each round. What round k sees depends on the recipe
    and on k alone, so that a resumed training goes on with the same draws.
    """

    def __init__(self, emulator: PhotulatorEmulator, recipe: DistilRecipe):
        self._recipe, self._space, self._range = recipe, emulator.space, emulator.redshift_range
        self._groups: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

        def one(emulator: PhotulatorEmulator, theta: Array) -> tuple[Array, Array]:
            features = continuum_features(emulator.space, emulator.cosmology, pivots(emulator), None, theta)
            return features, faint_limited(emulator.photometry(emulator.space, theta))

        run = eqx.filter_jit(jax.vmap(one, in_axes=(None, 0)))
        self._run = lambda theta: run(emulator, theta)

    def parameters(self, stream: int, n: int) -> np.ndarray:
        """Draws (n, param) of a numbered random stream; N is 0."""
        rng = np.random.default_rng([self._recipe.seed, stream])
        return draw_parameters(rng, self._space, n, *self._range)

    def _group(self, index: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        known = self._groups.get(index)
        if known is None or known[0] != stream:
            n = -(-self._recipe.n_draws // self._recipe.n_groups)
            theta = self.parameters(stream, -(-n // _PIECE) * _PIECE)
            parts = [self._run(jnp.asarray(theta[i : i + _PIECE])) for i in range(0, len(theta), _PIECE)]
            features, magnitudes = (np.concatenate([np.asarray(p[k]) for p in parts])[:n] for k in (0, 1))
            self._groups[index] = known = (stream, features, magnitudes)
        return known[1], known[2]

    def round(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (draw, feature) and magnitudes (draw, band) of a round."""
        n_groups = self._recipe.n_groups
        # Group g was last replaced in the latest round r <= index with r = g modulo the number of groups.
        streams = [index - (index - group) % n_groups + n_groups for group in range(n_groups)]
        groups = [self._group(group, stream) for group, stream in enumerate(streams)]
        return np.concatenate([g[0] for g in groups]), np.concatenate([g[1] for g in groups])


def pivots(emulator: PhotulatorEmulator) -> Array:
    """Mean wavelengths (band,) of the bands, of which features are made [Angstrom]."""
    return jnp.asarray(emulator.lines.mean_wavelength, jnp.float32)


def faint_limited(magnitudes: Array) -> Array:
    """Magnitudes (band,) with a faint source added, so that none is much fainter than 20."""
    return -2.5 * jnp.log10(10 ** (-0.4 * magnitudes) + 10 ** (-0.4 * _FAINT))


def distil(
    emulator: PhotulatorEmulator, recipe: DistilRecipe, checkpoint_dir: Path | None = None
) -> tuple[PhotulatorEmulator, dict]:
    """Train one network on the photometry of an emulator.

    Args:
        emulator: the published one.
        recipe: network and training.
        checkpoint_dir: where the state of training is kept; a killed training goes on from it.

    Returns:
        The same emulator with the shared network and its measured error, and the accuracy table against
        the published one on held-out draws, lines included.
    """
    draws = Draws(emulator, recipe)
    network = _untrained(recipe, *draws.round(0))
    schedule = Schedule(
        recipe.n_rounds, recipe.batch_size, recipe.learning_rate, recipe.seed, recipe.average, clip=1.0
    )
    checkpoint = None
    if checkpoint_dir is not None:
        checkpoint = Path(checkpoint_dir) / f"{recipe.name}-{_digest(emulator, recipe)}.eqx"
    trained = train(network, _absolute, draws.round, schedule, checkpoint, recipe.name)
    shared = SharedPhotometry(trained, pivots(emulator), emulator.cosmology)
    student = replace(emulator, photometry=shared)
    table = _measure(emulator, student, draws.parameters(_TEST_STREAM, recipe.n_test))
    logger.info("held-out error [mag]: median %(median).4f, p95 %(p95).4f, p99 %(p99).4f", table["overall"])
    edges = np.array(table["redshift_edges"])
    nodes = jnp.asarray(0.5 * (edges[1:] + edges[:-1]), jnp.float32)
    fraction = jnp.asarray(0.4 * np.log(10) * np.array(table["half_width"]), jnp.float32)
    return replace(student, error_redshift=nodes, error=fraction), table


def _untrained(recipe: DistilRecipe, features: np.ndarray, magnitudes: np.ndarray) -> Network:
    sizes = (features.shape[1], *[recipe.width] * recipe.depth, magnitudes.shape[1])
    moments = [(values.mean(0), values.std(0) + 1e-6) for values in (features, magnitudes)]
    return initial_network(jax.random.PRNGKey(recipe.seed), sizes, *moments)


def _absolute(network: Network, features: Array, target: Array) -> Array:
    """Smooth absolute error in magnitudes; a robust loss, since tails are few and hard."""
    weight = 0.03 + 0.97 * jax.nn.sigmoid(2 * (_UNSEEN - target))
    return jnp.mean(weight * jnp.sqrt((network(features) - target) ** 2 + _SOFT**2))


def _measure(teacher: PhotulatorEmulator, student: PhotulatorEmulator, theta: np.ndarray) -> dict:
    def magnitudes(emulator: PhotulatorEmulator) -> np.ndarray:
        run = eqx.filter_jit(jax.vmap(lambda e, t: e(t), in_axes=(None, 0)))
        pieces = [np.asarray(run(emulator, theta[i : i + _PIECE])) for i in range(0, len(theta), _PIECE)]
        return 22.5 - _USUAL_N - 2.5 * np.log10(np.maximum(np.concatenate(pieces), 1e-20))

    theta = theta.copy()
    theta[:, teacher.space.index("N")] = _USUAL_N  # the line network has never seen N = 0
    redshift = theta[:, teacher.space.index("redshift")]
    edges = redshift_edges(*teacher.redshift_range)
    return accuracy_table(magnitudes(student), magnitudes(teacher), redshift, edges)


def _digest(emulator: PhotulatorEmulator, recipe: DistilRecipe) -> str:
    """Short hash of all that a training depends on, so that no other training's state is resumed."""
    facts = {"recipe": recipe.model_dump(mode="json"), "package": popcosmos_hpc.__version__}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for _, array in sorted(emulator.to_bundle()[1].items()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]
