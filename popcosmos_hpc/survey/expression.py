"""Row selections written as text: `mag_auto < 24 and flag == 0`.

A small language on purpose: names of columns, numbers, strings, comparisons, arithmetic, `and`, `or`, `not`,
`in [..]` and four functions. Nothing of Python beyond these is reachable from a preset.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from popcosmos_hpc.errors import ConfigurationError

_ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARISONS: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable] = {
    "abs": np.ma.abs,
    "log10": np.ma.log10,
    "sqrt": np.ma.sqrt,
    "isnull": lambda value: np.ma.array(np.ma.getmaskarray(value)),
}
_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.BinOp,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.UAdd,
    ast.Invert,
    ast.Compare,
    ast.In,
    ast.NotIn,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Call,
    *_ARITHMETIC,
    *_COMPARISONS,
)


def parse(text: str, where: str = "expression") -> ast.Expression:
    """Parse a selection and refuse everything outside the small language.

    Args:
        text: the expression.
        where: the setting it came from, for the message.

    Raises:
        ConfigurationError: the text does not parse or uses something else than the language has.
    """
    hint = "Use column names, numbers, comparisons, and/or/not, in [...], abs, log10, sqrt, isnull."
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ConfigurationError("an expression over columns", repr(text), where, hint) from error
    for node in ast.walk(tree):
        legal_call = not isinstance(node, ast.Call) or (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        )
        if not isinstance(node, _ALLOWED) or not legal_call:
            raise ConfigurationError(
                "an expression over columns", f"{type(node).__name__} in {text!r}", where, hint
            )
    return tree


def column_names(text: str, where: str = "expression") -> tuple[str, ...]:
    """Names of the columns that an expression reads, in order of appearance.

    >>> column_names("abs(z_spec) < 1 and flag in [0, 4]")
    ('z_spec', 'flag')
    """
    nodes = [node for node in ast.walk(parse(text, where)) if isinstance(node, ast.Name)]
    names = [node.id for node in sorted(nodes, key=lambda node: node.col_offset)]
    return tuple(dict.fromkeys(name for name in names if name not in _FUNCTIONS))


def select(text: str, columns: Mapping[str, np.ma.MaskedArray], n_rows: int) -> np.ndarray:
    """Evaluate a selection; a comparison with a missing value is false.

    Args:
        text: the expression.
        columns: masked arrays [row] of the columns it names.
        n_rows: number of rows.

    Returns:
        bool [row].

    >>> select("flag != 1", {"flag": np.ma.array([0, 1, 0], mask=[False, False, True])}, 3)
    array([ True, False, False])
    """
    value = _evaluate(parse(text).body, columns)
    return np.broadcast_to(_as_bool(value), (n_rows,)).copy()


def _as_bool(value) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(value), False).astype(bool)


def _evaluate(node: ast.AST, columns: Mapping[str, np.ma.MaskedArray]) -> Any:
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(item, columns) for item in node.elts]
    if isinstance(node, ast.Call):
        return _FUNCTIONS[node.func.id](*[_evaluate(item, columns) for item in node.args])  # type: ignore[attr-defined]
    if isinstance(node, ast.BoolOp):
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return combine.reduce([_as_bool(_evaluate(item, columns)) for item in node.values])
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, columns)
        if isinstance(node.op, (ast.Not, ast.Invert)):
            return ~_as_bool(value)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, columns), _evaluate(node.right, columns)
        return _ARITHMETIC[type(node.op)](left, right)
    return _compare(node, columns)


def _compare(node, columns) -> np.ndarray:
    left, result = _evaluate(node.left, columns), np.bool_(True)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(comparator, columns)
        if isinstance(op, (ast.In, ast.NotIn)):
            known = ~np.ma.getmaskarray(left)
            found = np.isin(np.ma.getdata(left), right)
            step = known & (found if isinstance(op, ast.In) else ~found)
        else:
            step = _as_bool(_COMPARISONS[type(op)](left, right))
        result = result & step
        left = right
    return np.asarray(result)
