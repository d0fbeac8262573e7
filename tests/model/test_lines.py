"""How bundles keep the bandpasses of lines."""

import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.model.lines import LineEmulator, pack, unpack
from popcosmos_hpc.model.reference import LineTable


@pytest.fixture
def table():
    """A leak after a gap, a column that fills the axis, one that is dark, and one node at each end."""
    table = np.zeros((40, 5), np.float32)
    table[3:9, 0], table[20:22, 0] = np.linspace(0.1, 2.0, 6), 1e-6
    table[:, 1] = 0.5
    table[0, 3], table[39, 4] = 3.0, 4.0
    return table


def test_packed_columns_are_the_same_columns(table):
    packed = pack(table)
    assert packed["first"].tolist() == [3, 0, 0, 0, 39]
    assert packed["count"].tolist() == [19, 40, 0, 1, 1]
    assert len(packed["values"]) == 61
    again = unpack(packed)
    assert again.dtype == table.dtype and np.array_equal(again, table)


def test_bandpasses_are_read_packed_and_whole(table):
    wave, redshift = jnp.exp(jnp.asarray([7.75, 7.8, 8.1])), jnp.asarray(0.3)
    source = LineTable(jnp.ones((2, 2, 2, 3, 2)), wave, *[jnp.arange(2.0)] * 3)
    lines = LineEmulator(
        ("a", "b", "c"), source, wave, jnp.ones((4, 3)), jnp.arange(4.0), jnp.asarray(table),
        jnp.asarray([8.0, 0.01]),
    )  # fmt: skip
    flux = lines.flux(jnp.ones(3), redshift)
    assert np.all(flux[:2] > 0)
    arrays = lines.to_arrays()
    assert "line.transmission" not in arrays
    # As in bundles written before, which hold all zeros.
    whole = {name: value for name, value in arrays.items() if "bandpass" not in name}
    for stored in (arrays, {**whole, "line.transmission": table}):
        again = LineEmulator.from_arrays(lines.names, stored)
        assert np.array_equal(again.transmission, table)
        assert np.array_equal(again.network.table, source.table)
        assert np.array_equal(again.flux(jnp.ones(3), redshift), flux)
