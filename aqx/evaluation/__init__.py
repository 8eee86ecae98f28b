"""Many functions evaluated at once, and the fingerprints that tell equal functions."""

from aqx.evaluation.family import Batch, Family, batches_of
from aqx.evaluation.fingerprint import (
    METHOD,
    Fingerprints,
    class_id_of,
    fingerprints,
    operator_behaviours,
    probe_pairs,
    probe_points,
)
from aqx.evaluation.precision import Precision, precision
from aqx.evaluation.values import FiniteAt, evaluate, evaluate_family, finite_at

__all__ = [
    "METHOD",
    "Batch",
    "Family",
    "Fingerprints",
    "FiniteAt",
    "Precision",
    "batches_of",
    "class_id_of",
    "evaluate",
    "evaluate_family",
    "fingerprints",
    "finite_at",
    "operator_behaviours",
    "probe_pairs",
    "precision",
    "probe_points",
]
