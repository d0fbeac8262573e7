"""Every row of a pool weighed: what two-stage sampling must agree with, at a cost growing with the pool."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from popcosmos_hpc.inference.diagnostics import require
from popcosmos_hpc.inference.pool import N_SUB_POOLS, PoolSampler, PoolTables, draws_of_rows, weigh_rows
from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.inference.start import apart, shuffled_resample
from popcosmos_hpc.inference.weighted import Quality, certificate, pareto_k
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.photometry import Photometry


class ExhaustiveState(NamedTuple):
    """State of one galaxy: key, ln likelihoods and sub-pools of all rows (row,), whether they are there."""

    key: Any
    log_likelihood: Any
    sub_pool: Any
    done: Any


class ExhaustivePool(PoolSampler):
    """Importance sampling with all rows of a pool; settings as for `PoolSampler`, of which picks are unused.

    Args:
        chunk: rows weighed together.
    """

    chunk: int = eqx.field(static=True, default=1 << 16)

    identifier: ClassVar[int] = 5
    loop_free: ClassVar[bool] = False

    def __check_init__(self):
        require(self.chunk >= 1024, "a chunk of at least 1024", "sampler exhaustive")

    @property
    def max_draws(self) -> int:
        """A systematic sample of the rows."""
        return self.pool.draw.shape[0]

    @property
    def _n_chunks(self) -> int:
        return -(-self.pool.draw.shape[0] // self.chunk)

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: PoolTables) -> ExhaustiveState:
        """Nothing is done yet."""
        n = self._n_chunks * self.chunk
        return ExhaustiveState(key, jnp.zeros(n), jnp.zeros(n, jnp.int32), jnp.zeros((), bool))

    def step(
        self, state: ExhaustiveState, photometry: Photometry, model: GalaxyModel, shared: PoolTables
    ) -> ExhaustiveState:
        """All rows, chunk by chunk."""
        n_rows = self.pool.draw.shape[0]

        def weigh(index):
            row = index * self.chunk + jnp.arange(self.chunk)
            log_likelihood, sub_pool = weigh_rows(
                model, self.pool, shared, photometry, jnp.minimum(row, n_rows - 1)
            )
            return jnp.where(row < n_rows, log_likelihood, LOWEST), sub_pool

        log_likelihood, sub_pool = jax.lax.map(weigh, jnp.arange(self._n_chunks))
        return ExhaustiveState(
            state.key, log_likelihood.reshape(-1), sub_pool.reshape(-1), jnp.ones((), bool)
        )

    def finish(
        self,
        state: ExhaustiveState,
        photometry: Photometry,
        model: GalaxyModel,
        shared: PoolTables,
        draws: int,
    ) -> Posterior:
        """Draws and certificate."""
        quality = apart(photometry, lambda: self._assess(state))
        key = jax.random.fold_in(state.key, 2)
        row = shuffled_resample(key, state.log_likelihood, draws)
        drawn = draws_of_rows(model, self.pool, shared, photometry, row, state.log_likelihood[row])
        return certificate(quality, drawn, self.thresholds, self.identifier)

    def _assess(self, state: ExhaustiveState) -> Quality:
        shift = jnp.max(state.log_likelihood)
        weight = jnp.exp(state.log_likelihood - shift)
        total = jnp.sum(weight)
        parts = jnp.zeros(N_SUB_POOLS).at[state.sub_pool].add(weight)
        return Quality(
            total**2 / jnp.sum(weight * weight),
            jnp.max(weight) / total,
            # As many as two-stage sampling looks at: of a whole pool, 3 sqrt(n) would be all that matter.
            pareto_k(weight, int(3 * self.n_picks**0.5)),
            shift + jnp.log(total) - self.pool.log_n_drawn,
            jnp.std(parts, ddof=1) / jnp.mean(parts) / jnp.sqrt(float(N_SUB_POOLS)),
        )
