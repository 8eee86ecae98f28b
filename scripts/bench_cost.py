"""What functions cost by the sum over their operators, against what they take compiled one by one.

scripts/bench_cost [--functions 100] [--seed 1]
"""

from __future__ import annotations

import argparse

import numpy as np

import aqx
from aqx.costs import UNIT, cost_of, device_here, measure_functions, measure_operators
from aqx.operators import SETS

SCHEMAS = [
    "unary(unary(x))",
    "binary(unary(x),unary(x))",
    "unary(unary(unary(x)))",
    "unary(binary(unary(x),unary(x)))",
]


def main() -> None:
    """Print how well the sums order functions, and how far they are off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--functions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    names = [str(tree) for tree in aqx.Space(SCHEMAS, operators="extended").sample(given.functions, given.seed)]
    known = measure_operators(SETS["extended"])
    unit, *took = measure_functions([UNIT, *names])
    true = np.array(took) / unit
    sums = np.array([cost_of(name, known) for name in names]) / cost_of(UNIT, known)
    low, middle, high = np.quantile(sums / true, [0.05, 0.5, 0.95])
    error = np.exp(np.sqrt(np.mean(np.log(sums / true) ** 2)))
    print(f"{device_here()}: {len(names)} functions, {true.min():.2g} to {true.max():.3g} times relu")
    ranks = np.corrcoef(np.argsort(np.argsort(sums)), np.argsort(np.argsort(true)))[0, 1]
    print(f"rank correlation {ranks:.3f}; sum / compiled {middle:.2f}, of nine tenths {low:.2f} to {high:.2f}")
    wrong = np.mean((sums > 3) != (true > 3))
    print(f"off by a factor of {error:.2f} (root mean square); on the wrong side of 3: {wrong:.0%}")
    for at in np.argsort(np.abs(np.log(sums / true)))[::-1][:5]:
        print(f"  {names[at]}: {sums[at]:.2f}, compiled {true[at]:.2f}")


if __name__ == "__main__":
    main()
