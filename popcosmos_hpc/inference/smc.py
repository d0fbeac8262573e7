"""Tempered sequential Monte Carlo, started from a pool of prior draws.

Independent ensembles are carried from a tempered prior to the posterior. At each inverse temperature
particles move by differential evolution (ter Braak 2006): half of an ensemble at a time, along
differences of the other half, so every move leaves the tempered posterior invariant. All particles of
all ensembles pass the emulator in one batch.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from popcosmos_hpc.inference.diagnostics import certify, effective_size, evaluate_draws, evenly, require, rhat
from popcosmos_hpc.inference.sampler import AbstractSampler, Posterior
from popcosmos_hpc.inference.start import (
    PriorPool,
    bisect_inverse_temperature,
    build_pool,
    pool_log_likelihood,
    systematic_resample,
    tempered_start,
)
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import Photometry

_LEAP = 0.1  # share of proposals with gamma = 1, which carry particles between modes
_JITTER = 0.2
_SCALE_RANGE = (0.1, 2.0)


class SMCState(NamedTuple):
    """State of one galaxy.

    Attributes:
        key: random key.
        u: (ensemble, particle, param).
        log_prior: (ensemble, particle).
        log_likelihood: (ensemble, particle).
        beta: (ensemble,) inverse temperature.
        log_evidence: (ensemble,).
        scale: (ensemble,) factor on the proposals.
        acceptance: (ensemble,) of the last stage.
        stage: () stages so far.
        finished: () stages since every ensemble reached the posterior.
    """

    key: Any
    u: Any
    log_prior: Any
    log_likelihood: Any
    beta: Any
    log_evidence: Any
    scale: Any
    acceptance: Any
    stage: Any
    finished: Any


class SMC(AbstractSampler):
    """Tempered SMC with differential-evolution moves.

    Args:
        n_particles: particles per ensemble; even.
        n_ensembles: independent ensembles.
        n_pool: prior draws in the pool, shared out over the ensembles.
        n_moves: moves per stage.
        keep: effective fraction of particles that a change of temperature keeps.
        min_final: stages at the posterior before the first look at R-hat and effective size.
        max_stages: stages after which the galaxy is given up as not converged.
        target_acceptance: acceptance that the proposals' scale is steered to.
        rhat_max: largest R-hat of a converged galaxy.
        ess_min: smallest effective size of a converged galaxy.
    """

    n_particles: int = eqx.field(static=True, default=128)
    n_ensembles: int = eqx.field(static=True, default=4)
    n_pool: int = eqx.field(static=True, default=131072)
    n_moves: int = eqx.field(static=True, default=24)
    keep: float = eqx.field(static=True, default=0.5)
    min_final: int = eqx.field(static=True, default=1)
    max_stages: int = eqx.field(static=True, default=24)
    target_acceptance: float = eqx.field(static=True, default=0.2)
    rhat_max: float = eqx.field(static=True, default=1.1)
    ess_min: float = eqx.field(static=True, default=50.0)

    identifier: ClassVar[int] = 1

    def __check_init__(self):
        where = "sampler smc"
        require(self.n_particles >= 8 and self.n_particles % 2 == 0, "an even n_particles, at least 8", where)
        require(self.n_ensembles >= 2, "n_ensembles of at least 2", where)
        require(self.n_pool >= 4 * self.max_draws, "n_pool of 4 per particle or more", where)
        require(0.05 <= self.keep < 1.0, "keep between 0.05 and 1", where)
        counts = (self.n_moves, self.min_final, self.max_stages)
        require(min(counts) >= 1, "n_moves, min_final and max_stages of at least 1", where)

    @property
    def max_draws(self) -> int:
        """All particles of all ensembles."""
        return self.n_ensembles * self.n_particles

    def prepare(self, model: GalaxyModel, key) -> PriorPool:
        """The pool."""
        return build_pool(key, model, self.n_pool, self.n_ensembles)

    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: Any) -> SMCState:
        """Particles from the pool, at the temperature it can serve."""
        key, start_key = jax.random.split(key)
        log_likelihood = pool_log_likelihood(model, shared, photometry)
        start = tempered_start(start_key, shared, log_likelihood, self.n_particles)
        zero, one = jnp.zeros_like(start.beta), jnp.ones_like(start.beta)
        count = jnp.zeros((), jnp.int32)
        return SMCState(key, *start, scale=one, acceptance=zero, stage=count, finished=count)

    def step(self, state: SMCState, photometry: Photometry, model: GalaxyModel, shared: Any) -> SMCState:
        """Move at the present temperature, then cool."""
        key, move_key, cool_key = jax.random.split(state.key, 3)
        arrived = jnp.all(state.beta >= 1.0)
        state = self._move(move_key, state, photometry, self.target(model))
        state = self._cool(cool_key, state)
        return state._replace(
            key=key, stage=state.stage + 1, finished=state.finished + arrived.astype(jnp.int32)
        )

    def done(self, state: SMCState):
        """At the posterior with ensembles that agree, or out of stages."""
        agreed = (rhat(state.u) <= self.rhat_max) & (effective_size(state.u) >= self.ess_min)
        agreed &= state.finished >= self.min_final
        return agreed | (state.stage >= self.max_stages)

    def finish(
        self, state: SMCState, photometry: Photometry, model: GalaxyModel, shared: Any, draws: int
    ) -> Posterior:
        """Draws and certificate."""
        complete = jnp.all(state.beta >= 1.0)
        posterior = certify(
            state.key,
            model,
            photometry,
            state.u,
            self.drawn(state.key, model, photometry, evenly(state.u, draws)),
            # Particles that never reached the posterior have not converged, however well they agree.
            thresholds=(jnp.where(complete, self.rhat_max, 0.0), self.ess_min),
            pareto_k=jnp.full((), jnp.nan),
            # Before the last temperature it is the evidence of a tempered likelihood.
            log_evidence=jnp.where(
                complete, logsumexp(state.log_evidence) - jnp.log(float(self.n_ensembles)), jnp.nan
            ),
            log_evidence_error=jnp.where(complete, _relative_error(state.log_evidence), jnp.nan),
            acceptance=jnp.mean(state.acceptance),
            n_evaluations=state.stage * (self.n_moves * self.n_ensembles * self.n_particles),
            sampler=jnp.full((), self.identifier, jnp.int32),
        )
        return posterior

    def target(self, model: GalaxyModel) -> Any:
        """What has the densities `log_prior` and `log_likelihood` that particles move in."""
        return model

    def drawn(self, key, model: GalaxyModel, photometry: Photometry, u) -> tuple:
        """Particles u (draw, param) as draws of the posterior; see `evaluate_draws`."""
        return evaluate_draws(model, photometry, u)

    def _cool(self, key, state: SMCState) -> SMCState:
        """Lower the temperature of every ensemble as far as its particles allow, and resample."""

        def one(key, u, log_prior, log_likelihood, beta, log_evidence):
            shift = jnp.max(log_likelihood)
            relative = log_likelihood - shift
            even = jnp.zeros_like(relative)
            cooler = bisect_inverse_temperature(even, relative, beta, self.keep)
            cooler = jnp.where(beta < 1.0, cooler, beta)
            log_weight = (cooler - beta) * relative
            gain = logsumexp(log_weight) - jnp.log(float(self.n_particles)) + (cooler - beta) * shift
            rows = systematic_resample(key, log_weight, self.n_particles)
            rows = jnp.where(beta < 1.0, rows, jnp.arange(self.n_particles))
            return u[rows], log_prior[rows], log_likelihood[rows], cooler, log_evidence + gain

        keys = jax.random.split(key, self.n_ensembles)
        u, log_prior, log_likelihood, beta, log_evidence = jax.vmap(one)(
            keys, state.u, state.log_prior, state.log_likelihood, state.beta, state.log_evidence
        )
        return state._replace(
            u=u, log_prior=log_prior, log_likelihood=log_likelihood, beta=beta, log_evidence=log_evidence
        )

    def _move(self, key, state: SMCState, photometry: Photometry, model: Any) -> SMCState:
        """`n_moves` moves of every particle at the present temperatures; adapts the scale afterwards."""
        half = self.n_particles // 2
        in_halves = lambda x: jnp.moveaxis(x.reshape(x.shape[0], 2, half, *x.shape[2:]), 1, 0)  # noqa: E731
        particles = tuple(in_halves(x) for x in (state.u, state.log_prior, state.log_likelihood))
        evaluate = jax.vmap(jax.vmap(lambda u: (model.log_prior(u), model.log_likelihood(u, photometry))))

        def update(particles, random):
            u, log_prior, log_likelihood = particles
            proposal = differential_evolution(random, u[0], u[1], state.scale)
            new = (proposal, *evaluate(proposal))
            beta = jnp.broadcast_to(state.beta[:, None], log_prior[0].shape)
            gain = new[1] - log_prior[0] + beta * (new[2] - log_likelihood[0])
            accept = jnp.log(random.threshold) < gain
            kept = tuple(
                jnp.where(accept if x.ndim == 2 else jnp.broadcast_to(accept[..., None], x.shape), x, y[0])
                for x, y in zip(new, particles, strict=True)
            )
            # The halves change places, so that each update writes the first.
            swapped = tuple(jnp.stack([y[1], x]) for x, y in zip(kept, particles, strict=True))
            return swapped, jnp.mean(accept, axis=1)

        shape = (2 * self.n_moves, self.n_ensembles, half)
        particles, accepted = jax.lax.scan(update, particles, draw_random(key, shape))
        u, log_prior, log_likelihood = (
            jnp.moveaxis(x, 0, 1).reshape(self.n_ensembles, self.n_particles, *x.shape[3:]) for x in particles
        )
        acceptance = jnp.mean(accepted, axis=0)
        scale = state.scale * jnp.exp(acceptance - self.target_acceptance)
        return state._replace(
            u=u,
            log_prior=log_prior,
            log_likelihood=log_likelihood,
            acceptance=acceptance,
            scale=jnp.clip(scale, *_SCALE_RANGE),
        )


def _relative_error(log_evidence):
    """Standard error of the mean evidence of independent ensembles, relative to it."""
    evidence = jnp.exp(log_evidence - jnp.max(log_evidence))
    return jnp.std(evidence, ddof=1) / jnp.mean(evidence) / jnp.sqrt(float(len(evidence)))


class MoveRandom(NamedTuple):
    """Random numbers of a set of proposals, leading axes (*batch, ensemble, particle)."""

    pair: Any
    choice: Any
    threshold: Any


def draw_random(key, shape: tuple[int, ...]) -> MoveRandom:
    """All random numbers of a stage: few and narrow words, for they are slow to make on a CPU."""
    keys = jax.random.split(key, 3)
    return MoveRandom(
        jax.random.bits(keys[0], (*shape, 2), jnp.uint16),
        jax.random.uniform(keys[1], (*shape, 2)),
        jax.random.uniform(keys[2], shape, minval=1e-30),
    )


def differential_evolution(random: MoveRandom, active, other, scale):
    """Symmetric proposals along differences of the other half.

    Args:
        random: random numbers for (ensemble, particle).
        active: (ensemble, particle, param) particles to move.
        other: (ensemble, particle, param) particles that stay.
        scale: (ensemble,) factor on the step.
    """
    half = other.shape[1]
    first = random.pair[..., 0].astype(jnp.int32) % half
    second = (first + 1 + random.pair[..., 1].astype(jnp.int32) % (half - 1)) % half
    pick = lambda index: jnp.take_along_axis(other, index[..., None], axis=1)  # noqa: E731
    leap = random.choice[..., 0] < _LEAP
    gamma = jnp.broadcast_to(scale[:, None], leap.shape) * (2.38 / (2.0 * active.shape[-1]) ** 0.5)
    gamma = jnp.where(leap, 1.0, gamma) * (1.0 + _JITTER * (random.choice[..., 1] - 0.5))
    return active + gamma[..., None] * (pick(first) - pick(second))
