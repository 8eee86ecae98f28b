"""`duckdb`: DuckDB's compiled module, without the Python parts of its package.

Those (relations, expressions, Arrow) take a tenth of a second, and who reads trials needs none of them. What hands
Arrow tables over or builds a relation imports the package (encoding.py), which equips the same connections.
"""

import _duckdb as duckdb

__all__ = ["duckdb"]
