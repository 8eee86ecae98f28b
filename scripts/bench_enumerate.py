"""Measure enumeration and raw evaluation, each checked for the right answer first.

scripts/bench_enumerate [--repeat 3] [--only paper paper1000 sample large raw]

Every row runs in a process of its own, so that its peak memory is its own: once to compile (printed as "cold"), then
the given number of times into fresh databases, of which the median counts; the row `large`, which takes minutes and
gigabytes, once in all. Baselines of the same run: one function at a time through eager JAX and one INSERT each; and
pyoperon's EvaluateTrees, on functions that both know.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import jax
import jax.numpy as jnp
import numpy as np
from _timing import seconds

import aqx
from aqx.enumeration import EnumerationReport, enumerate_space, sample_points
from aqx.evaluation import Batch, Family, evaluate, evaluate_family
from aqx.operators import SETS, operator_table
from aqx.store import Database
from aqx.tree import Tree, parse_schema

PAPER_FUNCTIONS, PAPER_CLASSES = 1_023_516, 388_087  # of jax 0.10.2; another rounds a handful differently
LARGE = (  # of 4 and 5 operators, 4 deep: 11,160,261 functions
    "unary(unary(binary(unary(x),unary(x))))",
    "binary(unary(unary(x)),unary(unary(x)))",
    "binary(unary(unary(unary(x))),unary(x))",
)
HUGE = "binary(unary(unary(unary(unary(x)))),unary(unary(unary(unary(x)))))"  # 1,977,006,755,367
# What pyoperon calls the operators that it has.
UNARY = {"abs": "Abs", "exp": "Exp", "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "square": "Square"} | {
    "sin": "Sin",
    "cos": "Cos",
    "arctan": "Atan",
    "sqrt_abs": "Sqrtabs",
}
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"} | {
    "max": "Fmin",
    "min": "Fmax",  # version 0.6.2 has these two swapped, as the check of its values shows
}


def timed(work: Callable[[], object], repeat: int) -> float:
    """Return the median seconds of some work after one run to warm up."""
    work()
    return seconds(work, repeat)


def repeatedly(repeat: int, check: Callable[[EnumerationReport], bool], **options: Any) -> dict[str, Any]:
    """Enumerate into fresh databases, and once again into the last."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bench.duckdb"
        reports = []
        for _ in range(1 + repeat):
            path.unlink(missing_ok=True)
            reports.append(enumerate_space(Database(path, create=True), **options))
            if not check(reports[-1]):
                raise SystemExit(f"wrong: {reports[-1]}")
        size = path.stat().st_size
        again = enumerate_space(Database(path), **options)
        if again.added_functions or again.added_classes:
            raise SystemExit(f"wrong the second time: {again}")
    cold, *warm = [report.seconds for report in reports]
    median, functions = statistics.median(warm or [cold]), reports[0].added_functions
    return {
        "functions": functions,
        "classes": reports[0].added_classes,
        "seconds": median,
        "cold": cold,
        "per_second": functions / median,
        "again": again.seconds,
        "bytes": size,
        "bytes_per_function": size / functions,
    }


def paper(repeat: int, points: int = 256) -> dict[str, Any]:
    """The paper's space."""

    def right(report: EnumerationReport) -> bool:
        return report.added_functions == PAPER_FUNCTIONS and abs(report.added_classes - PAPER_CLASSES) <= 10

    return repeatedly(repeat, right, space=aqx.Space.paper(), points=points)


def paper1000(repeat: int) -> dict[str, Any]:
    """The paper's space at 1000 points."""
    return paper(repeat, points=1000)


def large(repeat: int) -> dict[str, Any]:
    """Over ten million functions, once."""
    space = aqx.Space(LARGE)
    return repeatedly(0, lambda report: report.added_functions == space.size > 10**7, space=space)


def sample(repeat: int) -> dict[str, Any]:
    """Ten thousand functions of 10¹²."""
    space = aqx.Space(HUGE)
    return repeatedly(repeat, lambda report: report.added_functions == 10_000, space=space, sample=10_000)


def plain(repeat: int) -> dict[str, Any]:
    """One function at a time: eager JAX, equal outputs, one INSERT each."""
    points = jnp.asarray(sample_points(256, "stratified"))
    names = [str(tree) for tree in aqx.Space.paper().sample(300, seed=0)]

    def work() -> None:
        classes: dict[bytes, int] = {}
        with duckdb.connect() as con:
            con.execute("CREATE TABLE functions (name VARCHAR, class INTEGER, outputs FLOAT[256])")
            for name in names:
                values = np.asarray(plain_value(aqx.parse(name), points))
                number = classes.setdefault(values.tobytes(), len(classes))
                con.execute("INSERT INTO functions VALUES (?, ?, ?)", [name, number, values.tolist()])

    return {"per_second": len(names) / timed(work, repeat)}


def plain_value(tree: Tree, x: jax.Array) -> jax.Array:
    """Evaluate one function operator by operator."""
    if not tree.args:
        return x
    return operator_table().by_name[tree.name].fn(*(plain_value(arg, x) for arg in tree.args))


def raw(repeat: int) -> dict[str, Any]:
    """All functions of binary(unary,unary), float32, at 1000 points: ours, and pyoperon's on those it has."""
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    schema = parse_schema("binary(unary(x),unary(x))")
    ours = family_rate(Family(schema, SETS["paper"]), x, repeat)
    shared = Family(schema, (*UNARY, *BINARY))
    found = {"per_second": ours, "shared_per_second": family_rate(shared, x, repeat)}
    batch = Family(schema, SETS["paper"]).batch(np.arange(5103))
    out = np.empty((5103, 1000), np.float32)
    found["without_compiling"] = 5103 / timed(lambda: evaluate(batch, x, out), 5 * repeat)
    try:
        found["pyoperon"] = pyoperon_rate(shared, x, repeat)
    except ImportError:
        print("pyoperon is not installed; pip install '.[bench]'", file=sys.stderr)
    return found


def family_rate(family: Family, x: np.ndarray, repeat: int) -> float:
    """Check and time `evaluate_family`: the result of each call is the buffer of the next."""
    out = evaluate_family(family, x, jnp.zeros((family.size, len(x)), jnp.float32))
    trees = [aqx.parse(family.name(i)) for i in range(0, family.size, 97)]
    for row, tree in zip(np.asarray(out)[::97], trees, strict=True):
        agree(str(tree), row, np.asarray(plain_value(tree, jnp.asarray(x))))

    def work() -> None:
        nonlocal out
        out = evaluate_family(family, x, out).block_until_ready()

    return family.size / timed(work, 10 * repeat)


def agree(name: str, values: np.ndarray, others: np.ndarray, tolerance: float = 1e-4) -> None:
    """Compare where both are finite; a rounded exponent may be an integer here and none there."""
    both = np.isfinite(values) & np.isfinite(others)
    np.testing.assert_allclose(values[both], others[both], rtol=tolerance, atol=tolerance, err_msg=name)
    assert both.sum() >= np.isfinite(others).sum() - 2, name


def pyoperon_rate(family: Family, x: np.ndarray, repeat: int) -> float:
    """Check and time pyoperon's EvaluateTrees on two threads, its result array used again each time."""
    pyoperon: Any = importlib.import_module("pyoperon")
    columns = np.asfortranarray(np.stack([x, x], axis=1))  # must outlive the data set, which looks into it
    data = pyoperon.Dataset(columns)
    known = {**UNARY, **BINARY}

    def nodes(tree: Tree) -> list[Any]:
        """In postfix order, the first argument last."""
        if not tree.args:
            node = pyoperon.Node.Variable(1.0)
            node.HashValue = node.CalculatedHashValue = data.Variables[0].Hash
            return [node]
        root = pyoperon.Node(getattr(pyoperon.NodeType, known[tree.name]))
        root.Arity = len(tree.args)
        return [node for arg in reversed(tree.args) for node in nodes(arg)] + [root]

    names = family.names(np.arange(family.size))
    trees = [pyoperon.Tree(nodes(aqx.parse(name))).UpdateNodes() for name in names]
    rows, result = pyoperon.Range(0, len(x)), np.empty(len(trees) * len(x), np.float32)
    pyoperon.EvaluateTrees(trees, data, rows, result, 2)
    ours = evaluate(Batch.of_trees([aqx.parse(name) for name in names]), x)
    for name, values, others in zip(names, result.reshape(len(trees), -1), ours, strict=True):
        if "pow" not in name:  # of a negative base it has another idea
            # Its functions are approximations, to about 1e-3 where they are large.
            agree(name, values, others, tolerance=5e-3)
    return family.size / timed(lambda: pyoperon.EvaluateTrees(trees, data, rows, result, 2), 5 * repeat)


ROWS = {row.__name__: row for row in (paper, paper1000, sample, large, plain, raw)}


def main() -> None:
    """Run each row in a process of its own and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="measured repeats")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        (row,) = args.only
        found = ROWS[row](args.repeat)
        print(json.dumps(found | {"peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, duckdb {duckdb.__version__}; medians of {args.repeat}")
    for row in args.only:
        command = [sys.executable, __file__, "--here", "--only", row, "--repeat", str(args.repeat)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{row}: " + ", ".join(f"{key} {value:,.4g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
