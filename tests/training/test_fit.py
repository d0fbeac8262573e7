import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.training.fit import Schedule, train


class Line(eqx.Module):
    slope: jax.Array
    name: str = eqx.field(static=True, default="line")

    def __call__(self, x):
        return self.slope @ x


def loss(model, x, y):
    return (model(x) - y) ** 2


def source(index):
    rng = np.random.default_rng(index)
    x = rng.normal(size=(2000, 2)).astype(np.float32)
    return x, (x @ np.array([1.5, -2.0])).astype(np.float32)


SCHEDULE = Schedule(n_rounds=12, batch_size=100, learning_rate=0.1)


def test_finds_the_answer():
    model = train(Line(jnp.zeros(2)), loss, source, SCHEDULE)
    assert np.allclose(model.slope, [1.5, -2.0], atol=1e-3)


def test_the_callers_model_stays_usable():
    first = Line(jnp.zeros(2))
    train(first, loss, source, SCHEDULE)
    assert np.array_equal(first.slope, [0.0, 0.0])


def test_the_best_held_out_model_is_kept_and_ends_the_training():
    """The held-out value rises after round three, so training ends once patience is spent."""
    seen = []

    def validate(model):
        seen.append(np.asarray(model.slope).copy())
        return float(abs(len(seen) - 3))

    found = train(Line(jnp.zeros(2)), loss, source, SCHEDULE._replace(patience=2), validate=validate)
    assert len(seen) == 6 and np.array_equal(found.slope, seen[2])


def test_resumed_training_equals_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr("popcosmos_hpc.training.fit.SAVE_EVERY", 0.0)
    whole = train(Line(jnp.zeros(2)), loss, source, SCHEDULE, tmp_path / "whole.eqx")

    class Killed(Exception):
        pass

    def dying(index):
        if index == 7:
            raise Killed
        return source(index)

    path = tmp_path / "stopped.eqx"
    with pytest.raises(Killed):
        train(Line(jnp.zeros(2)), loss, dying, SCHEDULE, path)
    rounds = []
    resumed = train(Line(jnp.zeros(2)), loss, lambda i: rounds.append(i) or source(i), SCHEDULE, path)
    assert rounds == list(range(7, 12))
    assert np.array_equal(whole.slope, resumed.slope)
    assert not list(tmp_path.glob("*.partial"))
