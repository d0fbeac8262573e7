"""Many galaxies through one compiled program.

Galaxies occupy slots of a batch of fixed size; a finished galaxy leaves its slot to the next. A galaxy's
random stream comes from the run's seed and its identifier, and its arithmetic does not depend on its slot:
its posterior is the same to the byte whatever company it has.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.inference.sampler import AbstractSampler, Posterior
from popcosmos_hpc.model.emulator import AbstractEmulator
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.prior import AbstractPrior, base_of_draw
from popcosmos_hpc.model.transforms import to_physical
from popcosmos_hpc.photometry import BandState, Photometry

TRACES: Counter[str] = Counter()
"""How often each compiled function was traced in this process; tests assert that it stays at one."""

_POOL_STREAM = 0x706F6F6C  # keeps the shared draws apart from every galaxy's stream


def fit_galaxies(
    sampler: AbstractSampler,
    model: GalaxyModel,
    photometry: Photometry,
    object_id: np.ndarray,
    seed: int,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    draws: int = 200,
    climbing: frozenset[int] = frozenset(),
) -> Posterior:
    """Fit many galaxies.

    Args:
        sampler: the sampler.
        model: the galaxy model.
        photometry: NumPy arrays with leading axis galaxy, bands in the model's order.
        object_id: (galaxy,) int64.
        seed: the run's seed.
        batch_size: slots.
        progress: called after every galaxy, with the number of those that are finished.
        draws: draws per galaxy.
        climbing: statuses of galaxies that are not finished, for another sampler follows.

    Returns:
        `Posterior` of NumPy arrays with leading axis galaxy. Galaxies that cannot be fitted have NaN
        draws and say why in `status`.

    Raises:
        ConfigurationError: more draws are asked for than the sampler has, or shapes disagree.
    """
    _check_arguments(sampler, model, photometry, object_id, batch_size, draws)
    status = examine(photometry, model)
    result = _empty(len(object_id), draws, model.space.size, status)
    if progress is not None and np.any(status != Status.OK):
        progress(int(np.sum(status != Status.OK)))
    todo = np.flatnonzero(status == Status.OK)
    if len(todo) == 0:
        return result
    clean = _sanitise(photometry, status)
    keys = galaxy_keys(seed, object_id)
    shared = _shared(sampler, model, seed)
    for row, posterior in _run(sampler, model, shared, clean, keys, todo, batch_size, draws):
        for target, value in zip(result, posterior, strict=True):
            target[row] = value
        if progress is not None:
            progress(int(int(posterior.status) not in climbing))
    return result


def galaxy_keys(seed: int, object_id: np.ndarray) -> np.ndarray:
    """Random key of each galaxy, (galaxy, 2) uint32, folded from the seed and both words of its id.

    Args:
        seed: the run's seed.
        object_id: (galaxy,) int64; split on the host, for JAX would cut it to 32 bits.
    """
    words = np.ascontiguousarray(object_id, np.int64).view(np.uint64)
    high = (words >> np.uint64(32)).astype(np.uint32)
    low = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    first = fold(jax.random.PRNGKey(seed), jnp.asarray(high))
    return np.asarray(jax.vmap(jax.random.fold_in)(first, jnp.asarray(low)))


def examine(photometry: Photometry, model: GalaxyModel) -> np.ndarray:
    """`Status` of each galaxy's photometry, (galaxy,) int32: OK, or why it cannot be fitted."""
    flux, error, state = (np.asarray(x) for x in photometry[:3])
    redshift, redshift_err = (np.asarray(x, np.float64) for x in photometry[3:])
    used = state != BandState.MISSING
    single = np.finfo(np.float32).max
    with np.errstate(invalid="ignore"):
        good = (np.abs(flux) < single) & (error > np.finfo(np.float32).tiny) & (error < single)
        bad = np.any(used & ~good, -1) | ~np.all(np.isin(state, [member.value for member in BandState]), -1)
        bad |= np.isinf(redshift) | (redshift <= -1.0) | (redshift_err < 0.0) | np.isinf(redshift_err)
        low, high = model.emulator.redshift_range
        outside = (redshift < low) | (redshift > high)
    status = np.full(flux.shape[0], Status.OK.value, np.int32)
    if "redshift" in model.space.names:
        status[outside] = Status.OUTSIDE_EMULATOR_RANGE
    status[~np.any(state == BandState.OBSERVED, -1)] = Status.NO_OBSERVED_BAND
    status[bad] = Status.BAD_PHOTOMETRY
    return status


def _check_arguments(sampler, model, photometry, object_id, batch_size, draws):
    shape = (len(object_id), len(model.bands))
    if np.shape(photometry.flux) != shape:
        raise ConfigurationError(f"fluxes of shape {shape}", str(np.shape(photometry.flux)), "photometry")
    if not np.issubdtype(np.asarray(object_id).dtype, np.integer):
        raise ConfigurationError("integer identifiers", str(np.asarray(object_id).dtype), "object_id")
    if batch_size < 1:
        raise ConfigurationError("at least one slot", str(batch_size), "sampler.batch_size")
    if not 1 <= draws <= sampler.max_draws:
        raise ConfigurationError(
            f"1 to {sampler.max_draws} draws", str(draws), "output.draws", "Ask for fewer, or add particles."
        )


def _sanitise(photometry: Photometry, status: np.ndarray) -> Photometry:
    """Float32 photometry without NaN in any band: missing bands and unfit galaxies hold 0 +- 1."""
    state = np.where(status[:, None] == Status.OK, np.asarray(photometry.state), 0).astype(np.int8)
    used = state != BandState.MISSING
    with np.errstate(invalid="ignore", over="ignore"):
        flux = np.where(used, photometry.flux, 0.0).astype(np.float32)
        error = np.where(used, photometry.flux_err, 1.0).astype(np.float32)
        redshift = np.asarray(photometry.redshift, np.float32)
        redshift_err = np.asarray(photometry.redshift_err, np.float32)
    return Photometry(flux, error, state, redshift, redshift_err)


def _empty(n_galaxies: int, draws: int, n_parameters: int, status: np.ndarray) -> Posterior:
    nan = lambda *shape: np.full((n_galaxies, *shape), np.nan, np.float32)  # noqa: E731
    return Posterior(
        theta=nan(draws, n_parameters),
        log_prior=nan(draws),
        log_likelihood=nan(draws),
        ess=nan(),
        pareto_k=nan(),
        rhat=nan(),
        ppp=nan(),
        log_evidence=nan(),
        log_evidence_error=nan(),
        max_weight=nan(),
        n_distinct=np.zeros(n_galaxies, np.int32),
        pool_row=np.full((n_galaxies, draws), -1, np.int32),
        acceptance=nan(),
        n_evaluations=np.zeros(n_galaxies, np.int32),
        status=status.copy(),
        sampler=np.full(n_galaxies, -1, np.int32),
    )


_REMEMBERED = 6  # rungs of a ladder take turns, block after block
_shared_memory: list[tuple[AbstractSampler, GalaxyModel, int, Any]] = []


def _shared(sampler: AbstractSampler, model: GalaxyModel, seed: int):
    """`sampler.prepare`, remembered for the last samplers, models and seeds of this process."""
    for known_sampler, known_model, known_seed, shared in _shared_memory:
        if known_sampler is sampler and known_model is model and known_seed == seed:
            return shared
    key = jax.random.fold_in(jax.random.PRNGKey(seed), _POOL_STREAM)
    shared = jax.block_until_ready(_prepare(sampler, model, key))
    _shared_memory[:] = [*_shared_memory[1 - _REMEMBERED :], (sampler, model, seed, shared)]
    return shared


def _run(
    sampler, model, shared, photometry: Photometry, keys, todo, batch_size: int, draws: int
) -> Iterator[tuple[int, Posterior]]:
    """Drive the slots until every galaxy of `todo` is finished; yields row and posterior."""
    queue = list(todo[::-1])
    rows = np.full(batch_size, -1)
    state: Any = None
    while queue or np.any(rows >= 0):
        fresh = np.zeros(batch_size, bool)
        for slot in np.flatnonzero(rows < 0)[: len(queue)]:
            rows[slot], fresh[slot] = queue.pop(), True
        # An idle slot holds a copy of some galaxy and is masked out.
        filled = np.where(rows >= 0, rows, todo[0])
        batch = Photometry(*(jnp.asarray(x[filled]) for x in photometry))
        if np.any(fresh):
            if state is None:
                state = _blank_state(sampler, model, shared, batch, jnp.asarray(keys[filled]))
            state = _init(sampler, model, shared, batch, jnp.asarray(keys[filled]), jnp.asarray(fresh), state)
        state, done = _step(sampler, model, shared, batch, jnp.asarray(rows >= 0), state)
        done = np.asarray(done) & (rows >= 0)
        if np.any(done):
            finished = _finish(sampler, model, shared, batch, jnp.asarray(done), state, draws)
            posterior = jax.device_get(finished)
            for slot in np.flatnonzero(done):
                yield int(rows[slot]), jax.tree.map(lambda x, slot=slot: x[slot], posterior)
            rows[done] = -1


def _over_slots(function, *slots):
    """Apply a function to every slot.

    On a CPU the slots run one after another: a batched matrix product may round a row differently at
    another position, and one galaxy's particles fill the core already. Elsewhere they run together.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda slot: function(*slot), slots)
    return jax.vmap(function)(*slots)


@eqx.filter_jit
def _blank_state(sampler, model, shared, batch, keys):
    """Zeros of the shape of a batch of states; compiled, so that shapes are found once per process."""
    one = jax.tree.map(lambda x: x[0], (keys, batch))
    shapes = eqx.filter_eval_shape(lambda key, photometry: sampler.init(key, photometry, model, shared), *one)
    return jax.tree.map(lambda x: jnp.zeros((keys.shape[0], *x.shape), x.dtype), shapes)


@eqx.filter_jit
def _prepare(sampler, model, key):
    TRACES["prepare"] += 1
    return sampler.prepare(model, key)


@eqx.filter_jit
def _init(sampler, model, shared, batch, keys, fresh, state):
    TRACES["init"] += 1

    def one(photometry, key, fresh, state):
        start = lambda: sampler.init(key, photometry, model, shared)  # noqa: E731
        return jax.lax.cond(fresh, start, lambda: state)

    return _over_slots(one, batch, keys, fresh, state)


@eqx.filter_jit
def _step(sampler, model, shared, batch, active, state):
    TRACES["step"] += 1

    def one(photometry, active, state):
        work = lambda: sampler.step(state, photometry, model, shared)  # noqa: E731
        state = jax.lax.cond(active, work, lambda: state)
        return state, sampler.done(state)

    return _over_slots(one, batch, active, state)


@eqx.filter_jit
def _finish(sampler, model, shared, batch, done, state, draws):
    TRACES["finish"] += 1

    def one(photometry, done, state):
        work = lambda: sampler.finish(state, photometry, model, shared, draws)  # noqa: E731
        shapes = eqx.filter_eval_shape(work)
        return jax.lax.cond(done, work, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    return _over_slots(one, batch, done, state)


@eqx.filter_jit
def transport_draws(prior: AbstractPrior, key, number):
    """Parameters (draw, param) of draws of a prior by their numbers, (draw,) uint32."""
    one = lambda n: to_physical(prior.space, prior.transport(base_of_draw(prior, key, n)))  # noqa: E731
    return jax.vmap(one)(number)


@eqx.filter_jit
def density_along(prior: AbstractPrior, phi, index: int, values):
    """Ln densities (draw, value) of latent phi (draw, param) with one parameter at values (draw, value)."""
    one = lambda row, value: prior.log_prob(row.at[index].set(value))  # noqa: E731
    return jax.lax.map(lambda draw: jax.vmap(one, (None, 0))(*draw), (phi, values))


@eqx.filter_jit
def emulate(emulator: AbstractEmulator, theta):
    """Fluxes (row, band) [nanomaggies] of parameters (row, param)."""
    return jax.vmap(emulator)(theta)


@jax.jit
def multiplied(left, right):
    """A matrix product."""
    return left @ right


@jax.jit
def copied(vector):
    """A vector read once and written once."""
    return vector + 1.0


def count_work(
    sampler: AbstractSampler, model: GalaxyModel, photometry: Photometry, seed: int
) -> tuple[float, float]:
    """Operations and bytes of one step of one galaxy by the compiler's count; NaN where it has none.

    Loops are counted once, whatever their length, so samplers that loop get NaN.

    Args:
        sampler: the sampler.
        model: the galaxy model.
        photometry: of at least one galaxy.
        seed: the run's seed.
    """
    if not getattr(sampler, "loop_free", False):
        return np.nan, np.nan
    shared = _shared(sampler, model, seed)
    clean = _sanitise(photometry, np.zeros(len(photometry.flux), np.int32))
    one = Photometry(*(jnp.asarray(x[0]) for x in clean))

    def step(sampler, model, shared, photometry, key):
        return sampler.step(sampler.init(key, photometry, model, shared), photometry, model, shared)

    lowered = eqx.filter_jit(step).lower(sampler, model, shared, one, jax.random.PRNGKey(0))
    found = lowered.compile().compiled.cost_analysis() or {}
    return float(found.get("flops", np.nan)), float(found.get("bytes accessed", np.nan))
