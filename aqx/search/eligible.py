"""Which candidates a search may suggest: of a kind that the task's model takes, and not too expensive."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from aqx.candidates import Candidates
from aqx.errors import Exhausted
from aqx.evaluation.class_ids import find_rows
from aqx.search.ledger import Ledger
from aqx.stopping import is_stop
from aqx.store import functions
from aqx.tasks import Task

_INPUTS = {1: "one input", 2: "two inputs"}
_log = logging.getLogger("aqx")


class Eligible:
    """Leaves out of a search's candidates what the task's model does not take, and what costs too much.

    Args:
        ledger: of the search.
        task: whose model it is.

    Attributes:
        max_cost: what a candidate may cost, relative to relu; None leaves all in.
        too_expensive: how many candidates that left out.
    """

    def __init__(self, ledger: Ledger, task: Task):
        self.ledger: Ledger = ledger
        self.task: Task = task
        self.max_cost: float | None = None
        self.too_expensive: int = 0
        self._not_applicable: list[int] | None = None  # the functions, by their inputs, that the model does not take

    def limit_cost(self, most: float | None) -> None:
        """Say what a candidate may cost."""
        self.max_cost, self.too_expensive = most, 0

    def among(self, table: Candidates) -> Candidates:
        """Return the candidates, of which the others are not to be used."""
        return self._affordable(self._applicable(table))

    def measure_costs(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Measure what the candidates cost of which that is not known, before anything is trained.

        Raises:
            Exhausted: all cost more than they may.
        """
        from aqx import costs  # compiles, which few searches need

        def shown(done: int, total: int, note: str) -> None:
            if progress and total:
                progress(done, total, f"cost of {note}" if note else "")

        baselines = {self.ledger.class_id(name): name for name in self.task.baselines}
        costs.compute_costs(self.ledger.db, baselines, sixteen_bits=False, progress=shown)
        _, relative = costs.known_costs(self.ledger.db)
        if self.max_cost is not None and len(relative) and not (relative <= self.max_cost).any():
            least = float(relative.min())
            raise Exhausted(
                f"max_cost={self.max_cost:g}: every candidate costs more, the cheapest {least:.3g} times what relu does"
            )

    def _applicable(self, table: Candidates) -> Candidates:
        """The candidates, of which those of a kind that the task's model does not take are not to be used."""
        if not table.two_inputs:
            return table
        if self._not_applicable is None:
            self._not_applicable = self._kinds_not_taken()
        usable = table.usable.copy()
        for inputs in self._not_applicable:
            rows = table.rows_of(functions.classes_by_inputs(self.ledger.db, inputs))
            usable[rows[rows >= 0]] = False
        return replace(table, usable=usable)

    def _kinds_not_taken(self) -> list[int]:
        """The functions, of one input or of two, that are not applicable to the task's model; none if it takes none."""
        from aqx.tasks.inputs import not_applicable  # brings Flax, which is slow to import

        try:
            x, _ = self.task.batch()
        except Exception as error:
            if is_stop(error):
                raise
            return []
        reasons = {inputs: reason for inputs in (1, 2) if (reason := not_applicable(self.task, inputs, x))}
        if len(reasons) == 1:
            _log.warning("aqx: functions of %s are %s", *[(_INPUTS[i], why) for i, why in reasons.items()][0])
        return list(reasons) if len(reasons) == 1 else []

    def _affordable(self, table: Candidates) -> Candidates:
        """The candidates, of which those that cost too much are not to be used."""
        if self.max_cost is None:
            return table
        from aqx import costs

        if len(table):
            costs.compute_costs(self.ledger.db, sixteen_bits=False)  # of what was enumerated since
        ids, relative = costs.known_costs(self.ledger.db)
        at = find_rows(table.ids, ids)
        cheap = np.zeros(len(table), bool)
        cheap[at[(at >= 0) & (relative <= self.max_cost)]] = True
        self.too_expensive = int((table.usable & ~cheap).sum())
        return replace(table, usable=table.usable & cheap)
