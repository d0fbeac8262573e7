r"""Importance sampling from a pool of prior draws, in two stages, at a cost that does not depend on its size.

The photometry of prior draws is the same for all galaxies. Tiles of draws that look alike are weighed first,
by the likelihood at their means; then draws are picked from the tiles in proportion, and weighed exactly,

.. math:: \hat Z = \frac{1}{M K} \sum_k L_k \frac{n_{t(k)}}{q_{t(k)}},

with M draws of the prior behind the pool, n of them in tile t, and q the probability of the tile, in which a
small part is spread over all draws alike. The estimate of the evidence is unbiased whatever the tiles are.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.inference.diagnostics import distinct, require
from popcosmos_hpc.inference.sampler import AbstractSampler, Posterior
from popcosmos_hpc.inference.start import apart, running_sum, shuffled_resample
from popcosmos_hpc.inference.weighted import (
    Drawn,
    Thresholds,
    WeightedDraws,
    assess,
    certificate,
    discrepancy_table,
    predictive_p,
)
from popcosmos_hpc.model.fast_likelihood import log_prob_of_fluxes
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.prior import LOWEST, base_of_draw
from popcosmos_hpc.photometry import AB_ZERO_POINT, Photometry

N_SUB_POOLS = 16
_CODES = 65535
_EDGE = 10**0.2  # half a magnitude above a limit
_NODES = 256  # of redshift, for the emulator's error
_TILE_ARRAYS = ("flux", "variance", "redshift", "normalisation")


class Pool(NamedTuple):
    """A pool of prior draws on the device, sorted by tile.

    Attributes:
        rows: (row, band + 2) uint16: fluxes as float16 [nanomaggies], code of the redshift, low bits of
            `draw`.
        theta: (row, param) uint16 codes of the parameters.
        draw: (row,) uint32 number of the draw.
        start: (tile + 1,) int32 first row of each tile.
        tile_flux: (band, tile) mean [nanomaggies].
        tile_variance: (band, tile) [nanomaggies^2].
        tile_redshift: (2, tile) mean and variance.
        tile_normalisation: (2, tile) mean and variance of N.
        low: (param,) what code 0 stands for.
        step: (param,) parameter per code.
        limit: (band,) fluxes below which draws were left out, zero where none were [nanomaggies].
        log_n_drawn: () ln of the prior draws behind the pool.
        key: (2,) of the draws.
    """

    rows: Any
    theta: Any
    draw: Any
    start: Any
    tile_flux: Any
    tile_variance: Any
    tile_redshift: Any
    tile_normalisation: Any
    low: Any
    step: Any
    limit: Any
    log_n_drawn: Any
    key: Any


def pool_on_device(store: Any) -> Pool:
    """Read an opened `survey.pool_store.PoolStore` into the device's memory."""
    facts = store.manifest
    low, high = np.array(facts["theta_low"]), np.array(facts["theta_high"])
    tiles = {name: jnp.asarray(store.tiles[name].T, jnp.float32) for name in _TILE_ARRAYS}
    return Pool(
        rows=jnp.asarray(store.column("rows")),
        theta=jnp.asarray(store.column("theta")),
        draw=jnp.asarray(store.column("draw")),
        start=jnp.asarray(store.tiles["start"].astype(np.int32)),
        tile_flux=tiles["flux"],
        tile_variance=tiles["variance"],
        tile_redshift=tiles["redshift"],
        tile_normalisation=tiles["normalisation"],
        low=jnp.asarray(low, jnp.float32),
        step=jnp.asarray((high - low) / _CODES, jnp.float32),
        limit=jnp.asarray(_limit(facts), jnp.float32),
        log_n_drawn=jnp.asarray(np.log(facts["n_drawn"]), jnp.float32),
        key=jax.random.PRNGKey(facts["seed"]),
    )


def _limit(facts: dict[str, Any]) -> np.ndarray:
    """Fluxes (band,) below which draws were left out [nanomaggies]; zero where none were."""
    flux = np.zeros(len(facts["bands"]))
    if (limit := facts["limit"]) is not None:
        flux[facts["bands"].index(limit["band"])] = 10 ** (0.4 * (AB_ZERO_POINT - limit["magnitude"]))
    return flux


class PoolTables(NamedTuple):
    """What a pool is worth under one model, for all galaxies.

    Attributes:
        fractional_variance: (band, node) error floor and emulator by redshift code, in squared fluxes.
        tile_fractional_variance: (band, tile) the same at the tiles' mean redshifts.
        discrepancy: see `weighted.discrepancy_table`.
    """

    fractional_variance: Any
    tile_fractional_variance: Any
    discrepancy: Any


def pool_tables(model: GalaxyModel, pool: Pool, key) -> PoolTables:
    """Tabulate what depends on model and pool."""
    names = model.space.names
    if "redshift" in names:
        index = names.index("redshift")
        nodes = pool.low[index] + pool.step[index] * (jnp.arange(_NODES) + 0.5) * ((_CODES + 1) / _NODES)
    else:
        nodes = jnp.zeros(_NODES)
    variance = lambda z: model.likelihood.error_floor**2 + model.emulator.sigma(z) ** 2  # noqa: E731
    over = lambda z: jax.lax.map(variance, z, batch_size=256).T  # noqa: E731
    return PoolTables(over(nodes), over(pool.tile_redshift[0]), discrepancy_table(model.likelihood, key))


class Rows(NamedTuple):
    """Rows of the pool, decoded.

    Attributes:
        flux: (band, row) emulator fluxes [nanomaggies].
        fractional_variance: (band, row) error floor and emulator, in squared fluxes.
        redshift_code: (row,) uint16.
        sub_pool: (row,) int32.
    """

    flux: Any
    fractional_variance: Any
    redshift_code: Any
    sub_pool: Any


def decode_rows(pool: Pool, tables: PoolTables, row) -> Rows:
    """Photometry of some rows."""
    codes = pool.rows[row].T
    flux = jax.lax.bitcast_convert_type(codes[:-2], jnp.float16).astype(jnp.float32)
    variance = tables.fractional_variance[:, (codes[-2] >> 8).astype(jnp.int32)]
    return Rows(flux, variance, codes[-2], (codes[-1] % N_SUB_POOLS).astype(jnp.int32))


def weigh_rows(model: GalaxyModel, pool: Pool, tables: PoolTables, photometry: Photometry, row):
    """Ln likelihood of rows of the pool and their sub-pools, (row,) each."""
    rows = decode_rows(pool, tables, row)
    log_likelihood = log_prob_of_fluxes(model.likelihood, rows.flux, rows.fractional_variance, photometry)
    log_likelihood += redshift_term(model, pool, rows.redshift_code, photometry)
    return jnp.maximum(log_likelihood, LOWEST), rows.sub_pool


def redshift_term(model: GalaxyModel, pool: Pool, code, photometry: Photometry):
    """Ln p(known redshift | redshift) of codes of the redshift, (row,)."""
    if "redshift" not in model.space.names:
        return jnp.zeros(code.shape)
    index = model.space.index("redshift")
    redshift = pool.low[index] + pool.step[index] * code.astype(jnp.float32)
    known = jnp.isfinite(photometry.redshift)
    term = lambda: model.likelihood.redshift_log_prob(redshift, photometry)  # noqa: E731
    return jax.lax.cond(known, term, lambda: jnp.zeros(redshift.shape))


def weigh_tiles(model: GalaxyModel, pool: Pool, tables: PoolTables, photometry: Photometry):
    """Ln likelihood (tile,) at the tiles' means, blurred by their spread."""
    log_likelihood = log_prob_of_fluxes(
        model.likelihood, pool.tile_flux, tables.tile_fractional_variance, photometry, pool.tile_variance
    )
    return log_likelihood + tile_redshift_term(model, pool, photometry)


def tile_redshift_term(model: GalaxyModel, pool: Pool, photometry: Photometry):
    """Ln p(known redshift | redshift) at the tiles' means, blurred by their spread, (tile,)."""
    mean, variance = pool.tile_redshift
    width = model.likelihood.redshift_width(photometry)
    blurred = photometry._replace(redshift_err=jnp.sqrt(width**2 + variance))
    known = jnp.isfinite(photometry.redshift)
    term = lambda: model.likelihood.redshift_log_prob(mean, blurred)  # noqa: E731
    return jax.lax.cond(known, term, lambda: jnp.zeros(mean.shape))


class Picks(NamedTuple):
    """Rows picked from tiles.

    Attributes:
        row: (pick,) int32.
        log_inverse: (pick,) ln of rows in the tile over the probability of the tile.
    """

    row: Any
    log_inverse: Any


def pick_rows(key, pool: Pool, log_worth, n_picks: int, defensive: float) -> Picks:
    """Pick rows: tiles systematically in proportion to their worth, then any row of each.

    Args:
        key: random key.
        pool: the pool.
        log_worth: (tile,) ln of what a row of each tile is worth.
        n_picks: rows to pick.
        defensive: share of picks that go to all rows alike.
    """
    size = (pool.start[1:] - pool.start[:-1]).astype(jnp.float32)
    worth = size * jnp.exp(log_worth - jnp.max(log_worth))
    probability = (1.0 - defensive) * worth / jnp.sum(worth) + defensive * size / jnp.sum(size)
    tile = systematic_tiles(key, probability, n_picks)
    random = jax.random.uniform(jax.random.fold_in(key, 1), (n_picks,))
    within = jnp.minimum(random * size[tile], size[tile] - 1.0).astype(jnp.int32)
    # Rounding of the running sum may lead to a neighbour; one without rows must not count.
    log_inverse = jnp.where(size > 0.0, jnp.log(size) - jnp.log(probability), LOWEST)
    return Picks(pool.start[tile] + within, log_inverse[tile])


def systematic_tiles(key, probability, n_picks: int):
    """Tiles (pick,) int32 in increasing order, each as often as its probability says, up to one."""
    cumulative = running_sum(probability)
    upto = jnp.ceil(cumulative / cumulative[-1] * n_picks - jax.random.uniform(key)).astype(jnp.int32)
    edges = jnp.zeros(n_picks + 1, jnp.int32).at[jnp.clip(upto, 0, n_picks)].add(1)
    return jnp.minimum(running_sum(edges[:n_picks]), len(probability) - 1)


class PoolState(NamedTuple):
    """State of one galaxy: key, the weighted draws, and whether they are there."""

    key: Any
    draws: WeightedDraws
    done: Any


class PoolSampler(AbstractSampler):
    """Two-stage importance sampling from a pool.

    Args:
        pool: on the device.
        n_picks: draws that are weighed per galaxy.
        defensive: share of them that ignores the tiles' likelihoods.
        ess_min: smallest effective size of a certified galaxy; the further thresholds as in `Thresholds`.
        max_weight: largest weight of one draw.
        pareto_k_max: largest tail index of the weights.
        evidence_error_max: largest error of ln Z, from the sub-pools.
        distinct_min: fewest different draws among those returned; half of them if fewer are asked for.
    """

    pool: Pool
    n_picks: int = eqx.field(static=True, default=16384)
    defensive: float = eqx.field(static=True, default=0.05)
    ess_min: float = eqx.field(static=True, default=200.0)
    max_weight: float = eqx.field(static=True, default=0.05)
    pareto_k_max: float = eqx.field(static=True, default=0.7)
    evidence_error_max: float = eqx.field(static=True, default=0.15)
    distinct_min: int = eqx.field(static=True, default=100)

    identifier: ClassVar[int] = 3
    loop_free: ClassVar[bool] = True

    def __check_init__(self):
        where = "sampler pool"
        require(self.n_picks >= 1024, "n_picks of at least 1024", where)
        require(0.0 < self.defensive < 1.0, "a defensive share between 0 and 1", where)

    @property
    def max_draws(self) -> int:
        """A systematic sample of the picks."""
        return self.n_picks

    @property
    def thresholds(self) -> Thresholds:
        """What a certified galaxy satisfies."""
        return Thresholds(
            self.ess_min, self.max_weight, self.pareto_k_max, self.evidence_error_max, self.distinct_min
        )

    def prepare(self, model: GalaxyModel, key) -> PoolTables:
        """Tables of model and pool."""
        return pool_tables(model, self.pool, key)

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: PoolTables) -> PoolState:
        """Nothing is done yet."""
        empty = jnp.zeros(self.n_picks)
        integers = jnp.zeros(self.n_picks, jnp.int32)
        return PoolState(key, WeightedDraws(integers, empty, empty, integers), jnp.zeros((), bool))

    def step(
        self, state: PoolState, photometry: Photometry, model: GalaxyModel, shared: PoolTables
    ) -> PoolState:
        """The whole sample."""
        log_worth = apart(photometry, lambda: weigh_tiles(model, self.pool, shared, photometry))
        pick = lambda: pick_rows(state.key, self.pool, log_worth, self.n_picks, self.defensive)  # noqa: E731
        picks = apart(photometry, pick)
        weigh = lambda: weigh_rows(model, self.pool, shared, photometry, picks.row)  # noqa: E731
        log_likelihood, sub_pool = apart(photometry, weigh)
        draws = WeightedDraws(picks.row, log_likelihood + picks.log_inverse, log_likelihood, sub_pool)
        return PoolState(state.key, draws, jnp.ones((), bool))

    def done(self, state: Any):
        """After one step."""
        return state.done

    def finish(
        self, state: PoolState, photometry: Photometry, model: GalaxyModel, shared: PoolTables, draws: int
    ) -> Posterior:
        """Draws and certificate."""
        quality = apart(photometry, lambda: assess(state.draws, self.pool.log_n_drawn, N_SUB_POOLS))
        pick = shuffled_resample(jax.random.fold_in(state.key, 2), state.draws.log_weight, draws)
        row = state.draws.row[pick]
        drawn = draws_of_rows(model, self.pool, shared, photometry, row, state.draws.log_likelihood[pick])
        return certificate(quality, drawn, self.thresholds, self.identifier)


def draws_of_rows(
    model: GalaxyModel, pool: Pool, tables: PoolTables, photometry: Photometry, row, log_likelihood
) -> Drawn:
    """Rows of the pool as draws of a posterior."""
    rows = decode_rows(pool, tables, row)
    u = jax.vmap(lambda number: base_of_draw(model.prior, pool.key, number))(pool.draw[row])
    limit = jnp.broadcast_to(pool.limit[:, None], rows.flux.shape)
    at_edge = (limit > 0.0) & (rows.flux < _EDGE * limit)
    return Drawn(
        theta_of_rows(pool, row),
        jax.vmap(model.log_prior)(u),
        log_likelihood,
        row,
        distinct(row),
        predictive_p(model.likelihood, tables.discrepancy, rows.flux, rows.fractional_variance, photometry),
        jnp.mean(jnp.any(at_edge, axis=0)),
    )


def theta_of_rows(pool: Pool, row):
    """Parameters (row, param) of rows of the pool."""
    code = pool.theta[row].astype(jnp.float32)
    low, step = (jnp.broadcast_to(side, code.shape) for side in (pool.low, pool.step))
    return low + step * code
