"""Tempered SMC that starts from a survey's pool: the last rung of the ladder.

The more draws a start can choose from, the lower the temperature at which enough of them are left, and the
fewer stages remain. Draws are picked in two stages here too, by the tempered likelihoods of the tiles.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from popcosmos_hpc.inference.diagnostics import require
from popcosmos_hpc.inference.pool import Pool, PoolTables, pick_rows, pool_tables, weigh_rows, weigh_tiles
from popcosmos_hpc.inference.smc import SMC, SMCState
from popcosmos_hpc.inference.start import bisect_inverse_temperature, systematic_resample
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.prior import base_of_draw
from popcosmos_hpc.photometry import Photometry


class PoolSMC(SMC):
    """`SMC`, started from a survey's pool.

    Args:
        pool: on the device.
        n_picks: rows that are weighed for the start.
        oversampling: effective draws of the pool per particle at the first temperature.
    """

    pool: Pool | None = None
    n_picks: int = eqx.field(static=True, default=32768)
    oversampling: float = eqx.field(static=True, default=4.0)

    identifier: ClassVar[int] = 6

    def __check_init__(self):
        require(self.pool is not None, "a pool", "sampler smc of a ladder")
        check_shares(self.n_picks, self.n_ensembles)

    def prepare(self, model: GalaxyModel, key) -> PoolTables:
        """Tables of model and pool."""
        return pool_tables(model, self._pool, key)

    @property
    def _pool(self) -> Pool:
        if self.pool is None:
            raise ValueError("checked on construction")
        return self.pool

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: Any) -> SMCState:
        """Particles from the pool, at the temperature it can serve."""
        keys = jax.random.split(key, 3)
        log_worth = self.weigh_tiles(model, shared, photometry)
        beta = self._temper(log_worth)
        picks = pick_rows(keys[0], self._pool, beta * log_worth, self.n_picks, 0.05)
        log_likelihood = self.weigh_rows(model, shared, photometry, picks.row)
        log_weight = beta * log_likelihood + picks.log_inverse
        # Picks lie in the order of the tiles: every n-th belongs to one ensemble.
        share = lambda x: x.reshape(-1, self.n_ensembles).T  # noqa: E731
        chosen = jax.vmap(lambda key, weight: systematic_resample(key, weight, self.n_particles))(
            jax.random.split(keys[1], self.n_ensembles), share(log_weight)
        )
        row = jnp.take_along_axis(share(picks.row), chosen, axis=1)
        one = lambda number: base_of_draw(model.prior, self._pool.key, number)  # noqa: E731
        u = jax.vmap(jax.vmap(one))(self._pool.draw[row])
        log_evidence = logsumexp(share(log_weight), axis=1) - jnp.log(self.n_picks / self.n_ensembles)
        ones, count = jnp.ones(self.n_ensembles), jnp.zeros((), jnp.int32)
        target = self.target(model)
        return SMCState(
            key=keys[2],
            u=u,
            log_prior=jax.vmap(jax.vmap(target.log_prior))(u),
            log_likelihood=jax.vmap(jax.vmap(lambda u: target.log_likelihood(u, photometry)))(u),
            beta=beta * ones,
            log_evidence=log_evidence - self._pool.log_n_drawn,
            scale=ones,
            acceptance=0.0 * ones,
            stage=count,
            finished=count,
        )

    def weigh_tiles(self, model: GalaxyModel, shared: PoolTables, photometry: Photometry):
        """Ln of what a row of each tile is worth, (tile,): a guess that steers the picks."""
        return weigh_tiles(model, self._pool, shared, photometry)

    def weigh_rows(self, model: GalaxyModel, shared: PoolTables, photometry: Photometry, row):
        """Ln likelihood (row,) of rows of the pool, as `target` has it."""
        return weigh_rows(model, self._pool, shared, photometry, row)[0]

    def _temper(self, log_worth):
        """Inverse temperature that the pool can serve, from the worth of the tiles (tile,)."""
        relative = log_worth - jnp.max(log_worth)
        size = (self._pool.start[1:] - self._pool.start[:-1]).astype(jnp.float32)
        n_wanted = self.oversampling * self.n_ensembles * self.n_particles
        fraction = jnp.minimum(n_wanted / self._pool.draw.shape[0], 0.9)
        return bisect_inverse_temperature(jnp.zeros_like(relative), relative, jnp.zeros(()), fraction, size)


def check_shares(n_picks: int, n_ensembles: int) -> None:
    """Refuse picks that cannot be shared evenly by the ensembles.

    Raises:
        ConfigurationError: they cannot.
    """
    expected = f"n_picks a multiple of {n_ensembles} ensembles"
    require(n_picks % n_ensembles == 0, expected, "sampler smc of a ladder")
