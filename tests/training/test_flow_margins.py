"""A flow works in the normal scores of its teacher, if the teacher does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.model.student_bundle import flow_from_bundle, student_to_bundle
from popcosmos_hpc.training.prior_student import train_flow
from tests.training.test_prior_student import FLOW, crooked, mapped


def test_a_flow_takes_over_its_teachers_margins(tmp_path):
    """Its density integrates the margins' slopes: against a numerical derivative of its own transport."""
    u = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    skewed = np.exp(mapped(crooked().transport, u))
    teacher = eqx.tree_at(
        lambda p: p.margins, crooked(), fit_marginals(skewed), is_leaf=lambda leaf: leaf is None
    )
    recipe = FLOW.model_copy(update={"n_rounds": 1, "n_draws": 2000, "n_layers": 2, "width": 8})
    flow = train_flow(teacher, recipe)
    assert flow.margins is teacher.margins
    facts, arrays = student_to_bundle(flow)
    path = save_bundle(tmp_path / "flow", {"name": "flow", "teacher_sha256": "0", **facts}, arrays)
    again = flow_from_bundle(load_bundle(path, "flow"))
    u = jnp.asarray([0.3, -0.4, 0.2])
    phi = flow.transport(u)
    np.testing.assert_allclose(again.transport(u), phi, rtol=1e-5)
    jacobian = jax.jacfwd(flow.transport)(u)
    expected = -0.5 * u @ u - 1.5 * np.log(2 * np.pi) - jnp.linalg.slogdet(jacobian)[1]
    assert float(again.log_prob(phi)) == pytest.approx(float(expected), abs=2e-3)
