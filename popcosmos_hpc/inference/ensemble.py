"""The affine-invariant ensemble sampler with stretch moves: the reference method.

Goodman & Weare (2010), as in the pop-cosmos papers; numpyro's implementation. Independent ensembles start
from a tempered resample of the prior pool.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro.infer import AIES

from popcosmos_hpc.inference.diagnostics import certify, evaluate_draws, evenly, require
from popcosmos_hpc.inference.sampler import AbstractSampler, Posterior
from popcosmos_hpc.inference.start import PriorPool, build_pool, pool_log_likelihood, tempered_start
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import Photometry


class EnsembleState(NamedTuple):
    """State of one galaxy.

    Attributes:
        key: random key.
        walkers: (ensemble, walker, param).
        kept: (snapshot, ensemble, walker, param) thinned history after the warm-up.
        acceptance: () of the last step.
        count: () steps so far.
    """

    key: Any
    walkers: Any
    kept: Any
    acceptance: Any
    count: Any


class StretchEnsemble(AbstractSampler):
    """numpyro's AIES with stretch moves.

    Args:
        n_walkers: walkers per ensemble; even, and best above twice the number of parameters.
        n_ensembles: independent ensembles.
        n_pool: prior draws in the pool that starts them.
        n_warmup: iterations thrown away.
        n_samples: iterations after the warm-up.
        n_kept: snapshots of all walkers kept of them, evenly spaced.
        rhat_max: largest R-hat of a converged galaxy.
        ess_min: smallest effective size of a converged galaxy.
    """

    n_walkers: int = eqx.field(static=True, default=64)
    n_ensembles: int = eqx.field(static=True, default=4)
    n_pool: int = eqx.field(static=True, default=131072)
    n_warmup: int = eqx.field(static=True, default=1000)
    n_samples: int = eqx.field(static=True, default=1000)
    n_kept: int = eqx.field(static=True, default=20)
    rhat_max: float = eqx.field(static=True, default=1.1)
    ess_min: float = eqx.field(static=True, default=50.0)

    identifier: ClassVar[int] = 0

    def __check_init__(self):
        where = "sampler ensemble"
        require(self.n_walkers >= 4 and self.n_walkers % 2 == 0, "an even n_walkers, at least 4", where)
        require(self.n_ensembles >= 2, "n_ensembles of at least 2", where)
        require(self.n_pool >= 4 * self.n_walkers * self.n_ensembles, "n_pool of 4 per walker or more", where)
        require(1 <= self.n_kept <= self.n_samples, "n_kept between 1 and n_samples", where)
        require(self.n_samples % self.n_kept == 0, "n_samples a multiple of n_kept", where)
        require(self.n_warmup >= 0, "n_warmup of at least 0", where)

    @property
    def max_draws(self) -> int:
        """All kept walkers."""
        return self.n_kept * self.n_ensembles * self.n_walkers

    @property
    def _thin(self) -> int:
        return self.n_samples // self.n_kept

    @property
    def _warmup_steps(self) -> int:
        return -(-self.n_warmup // self._thin)

    def prepare(self, model: GalaxyModel, key) -> PriorPool:
        """The pool."""
        return build_pool(key, model, self.n_pool, self.n_ensembles)

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: PriorPool) -> EnsembleState:
        """Walkers from the pool."""
        key, start_key = jax.random.split(key)
        log_likelihood = pool_log_likelihood(model, shared, photometry)
        walkers = tempered_start(start_key, shared, log_likelihood, self.n_walkers).u
        kept = jnp.zeros((self.n_kept, *walkers.shape), walkers.dtype)
        return EnsembleState(key, walkers, kept, jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step(
        self, state: EnsembleState, photometry: Photometry, model: GalaxyModel, shared: PriorPool
    ) -> EnsembleState:
        """As many iterations as lie between two snapshots."""
        key, move_key = jax.random.split(state.key)
        keys = jax.random.split(move_key, self.n_ensembles)
        advance = lambda key, walkers: self._advance(key, walkers, photometry, model)  # noqa: E731
        walkers, acceptance = jax.vmap(advance)(keys, state.walkers)
        slot = jnp.maximum(state.count - self._warmup_steps, 0)  # the warm-up is overwritten in slot 0
        return EnsembleState(
            key, walkers, state.kept.at[slot].set(walkers), jnp.mean(acceptance), state.count + 1
        )

    def done(self, state: EnsembleState):
        """All snapshots are taken."""
        return state.count >= self._warmup_steps + self.n_kept

    def finish(
        self, state: EnsembleState, photometry: Photometry, model: GalaxyModel, shared: PriorPool, draws: int
    ) -> Posterior:
        """Draws and certificate."""
        # Walker by walker: evenly spaced draws then come from many walkers, which are less alike than
        # successive snapshots of one.
        ensembles = jnp.moveaxis(state.kept, 0, 2).reshape(self.n_ensembles, -1, state.walkers.shape[-1])
        return certify(
            state.key,
            model,
            photometry,
            ensembles,
            evaluate_draws(model, photometry, evenly(ensembles, draws)),
            thresholds=(self.rhat_max, self.ess_min),
            pareto_k=jnp.full((), jnp.nan),
            log_evidence=jnp.full((), jnp.nan),
            log_evidence_error=jnp.full((), jnp.nan),
            acceptance=state.acceptance,
            # numpyro evaluates the walkers anew beside their proposals.
            n_evaluations=state.count * (2 * self._thin * self.n_ensembles * self.n_walkers),
            sampler=jnp.full((), self.identifier, jnp.int32),
        )

    def _advance(self, key, walkers, photometry: Photometry, model: GalaxyModel):
        """`_thin` iterations of one ensemble; also the mean acceptance."""
        with jax.ensure_compile_time_eval():
            # The kernel normalises its moves on construction, which must not be traced.
            kernel = AIES(
                potential_fn=lambda u: -model.log_target(u, photometry), moves={AIES.StretchMove(): 1.0}
            )
        # numpyro takes one key per walker and uses the first.
        keys = jnp.broadcast_to(key, (self.n_walkers, 2))
        start = kernel.init(keys, 0, walkers, (), {})

        def iterate(state, _):
            return kernel.sample(state, (), {}), None

        end, _ = jax.lax.scan(iterate, start, None, length=self._thin)
        return end.z, end.inner_state.mean_accept_prob
