import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.survey.expression import column_names, parse, select

COLUMNS = {
    "flag": np.ma.array([0, 1, 2, 0], mask=[0, 0, 0, 1]),
    "mag": np.ma.array([20.0, 21.0, np.nan, 23.0], mask=[0, 0, 1, 0]),
    "good": np.ma.array([True, False, True, True]),
    "kind": np.ma.array(["gal", "star", "gal", ""], mask=[0, 0, 0, 1]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good", [1, 0, 1, 1]),
        ("flag == 0", [1, 0, 0, 0]),
        ("flag != 1", [1, 0, 1, 0]),
        ("mag < 22 and good", [1, 0, 0, 0]),
        ("mag < 22 or good", [1, 1, 1, 1]),
        ("not good", [0, 1, 0, 0]),
        ("20.5 < mag <= 23", [0, 1, 0, 1]),
        ("flag in [1, 2]", [0, 1, 1, 0]),
        ("kind == 'gal'", [1, 0, 1, 0]),
        ("isnull(mag)", [0, 0, 1, 0]),
        ("abs(mag - 21) < 0.5", [0, 1, 0, 0]),
        ("log10(mag) > 0 and flag % 2 == 0", [1, 0, 0, 0]),
        ("1 == 1", [1, 1, 1, 1]),
    ],
)
def test_a_comparison_with_a_missing_value_is_false(text, expected):
    assert select(text, COLUMNS, 4).tolist() == [bool(v) for v in expected]


@pytest.mark.parametrize(
    "text", ["__import__('os')", "mag.real", "mag[0]", "lambda: 1", "open('x')", "a =", "f(x)"]
)
def test_nothing_else_of_python_is_reachable(text):
    with pytest.raises(ConfigurationError, match="an expression over columns"):
        parse(text)


def test_names_without_functions():
    assert column_names("abs(a) < b and a > 0") == ("a", "b")
