"""The no-U-turn sampler in base space: an auditor that knows nothing of pools, tempering or ensembles.

Hoffman & Gelman (2014, arXiv:1111.4246); numpyro's implementation. Chains are independent and each adapts its
own step and metric. They do not travel between modes: where a posterior has several, R-hat says so.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro import infer

from popcosmos_hpc.inference.diagnostics import certify, evaluate_draws, evenly, require
from popcosmos_hpc.inference.sampler import AbstractSampler, Posterior
from popcosmos_hpc.inference.start import PriorPool, build_pool, pool_log_likelihood, tempered_start
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import Photometry


class NUTSState(NamedTuple):
    """State of one galaxy.

    Attributes:
        key: random key.
        chains: numpyro's state, with a leading axis of chains.
        kept: (snapshot, chain, param) positions after the warm-up.
        n_steps: () evaluations of the gradient so far.
        count: () segments so far.
    """

    key: Any
    chains: Any
    kept: Any
    n_steps: Any
    count: Any


class NUTS(AbstractSampler):
    """numpyro's NUTS on the base-space posterior, every chain from a tempered draw of a prior pool.

    Args:
        n_chains: independent chains.
        n_pool: prior draws in the pool that starts them.
        n_warmup: iterations in which step and metric are adapted; thrown away.
        n_samples: iterations after the warm-up; all are kept.
        segment: iterations per step.
        max_tree_depth: a trajectory has at most 2^depth - 1 leapfrog steps.
        rhat_max: largest R-hat of a converged galaxy.
        ess_min: smallest effective size of a converged galaxy.
    """

    n_chains: int = eqx.field(static=True, default=8)
    n_pool: int = eqx.field(static=True, default=65536)
    n_warmup: int = eqx.field(static=True, default=200)
    n_samples: int = eqx.field(static=True, default=200)
    segment: int = eqx.field(static=True, default=20)
    max_tree_depth: int = eqx.field(static=True, default=7)
    rhat_max: float = eqx.field(static=True, default=1.1)
    ess_min: float = eqx.field(static=True, default=50.0)

    identifier: ClassVar[int] = 2

    def __check_init__(self):
        where = "sampler nuts"
        require(self.n_chains >= 2, "n_chains of at least 2", where)
        require(self.n_pool >= 16 * self.n_chains, "n_pool of 16 per chain or more", where)
        require(self.segment >= 1, "a segment of at least 1", where)
        whole = self.n_warmup % self.segment == 0 and self.n_samples % self.segment == 0
        require(whole, "n_warmup and n_samples multiples of segment", where)
        require(self.n_warmup >= self.segment <= self.n_samples, "at least one segment of each kind", where)
        require(1 <= self.max_tree_depth <= 12, "max_tree_depth between 1 and 12", where)

    @property
    def max_draws(self) -> int:
        """All positions after the warm-up."""
        return self.n_chains * self.n_samples

    def prepare(self, model: GalaxyModel, key) -> PriorPool:
        """The pool."""
        return build_pool(key, model, self.n_pool, self.n_chains)

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: PriorPool) -> NUTSState:
        """One position per chain from the pool."""
        keys = jax.random.split(key, 3)
        log_likelihood = pool_log_likelihood(model, shared, photometry)
        # The tempered posterior is wide: one of a few draws per chain starts it.
        start = tempered_start(keys[1], shared, log_likelihood, 8).u[:, 0]
        chain_keys = jax.random.split(keys[2], self.n_chains)
        kernel = self._kernel(model, photometry)
        begin = lambda key, u: kernel.init(key, self.n_warmup, u, (), {})  # noqa: E731
        chains = jax.vmap(begin)(chain_keys, start)
        kept = jnp.zeros((self.n_samples, *start.shape), start.dtype)
        count = jnp.zeros((), jnp.int32)
        return NUTSState(keys[0], chains, kept, count, count)

    def step(
        self, state: NUTSState, photometry: Photometry, model: GalaxyModel, shared: PriorPool
    ) -> NUTSState:
        """A segment of every chain."""
        kernel = self._kernel(model, photometry)
        # numpyro builds its transition on this call; the state it returns is not used.
        kernel.init(state.key, self.n_warmup, state.chains.z[0], (), {})

        def iterate(chains, _):
            chains = jax.vmap(lambda chain: kernel.sample(chain, (), {}))(chains)
            return chains, (chains.z, jnp.sum(chains.num_steps))

        chains, (path, n_steps) = jax.lax.scan(iterate, state.chains, None, length=self.segment)
        first = (state.count - self.n_warmup // self.segment) * self.segment
        # The warm-up is overwritten at the beginning.
        kept = jax.lax.dynamic_update_slice_in_dim(state.kept, path, jnp.maximum(first, 0), axis=0)
        total = state.n_steps + jnp.sum(n_steps, dtype=jnp.int32)
        return NUTSState(state.key, chains, kept, total, state.count + 1)

    def done(self, state: NUTSState):
        """All iterations are done."""
        return state.count >= (self.n_warmup + self.n_samples) // self.segment

    def finish(
        self, state: NUTSState, photometry: Photometry, model: GalaxyModel, shared: PriorPool, draws: int
    ) -> Posterior:
        """Draws and certificate."""
        ensembles = jnp.moveaxis(state.kept, 0, 1)
        unknown = jnp.full((), jnp.nan)
        return certify(
            state.key,
            model,
            photometry,
            ensembles,
            evaluate_draws(model, photometry, evenly(ensembles, draws)),
            thresholds=(self.rhat_max, self.ess_min),
            pareto_k=unknown,
            log_evidence=unknown,
            log_evidence_error=unknown,
            acceptance=jnp.mean(state.chains.mean_accept_prob),
            n_evaluations=state.n_steps,
            sampler=jnp.full((), self.identifier, jnp.int32),
        )

    def _kernel(self, model: GalaxyModel, photometry: Photometry) -> infer.NUTS:
        potential = lambda u: -model.log_target(u, photometry)  # noqa: E731
        return infer.NUTS(potential_fn=potential, dense_mass=True, max_tree_depth=self.max_tree_depth)
