"""`Descriptor`: what is computed of each candidate on a task, and stored as numbers: its spectrum, its short runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from aqx.spectra.subject import Subject
from aqx.store.kinds import Kind


@runtime_checkable
class Described(Protocol):
    """What was computed of K candidates."""

    @property
    def failed(self) -> Mapping[int, str]:
        """Candidates whose computation raised an exception, and which."""
        ...

    def reasons(self) -> list[str | None]:
        """Why each candidate is invalid, or None."""
        ...

    def features_of(self, subject: Subject) -> Float[np.ndarray, "K D"]:
        """What is stored of them, rows of nan for the invalid ones."""
        ...


Found = TypeVar("Found", bound=Described, covariant=True)


@dataclass(frozen=True)
class Descriptor(Generic[Found]):
    """A kind of features of candidates: how they are computed, and where they are stored.

    Attributes:
        kind: of the tables that hold them.
        one: what one candidate has.
        program: (subject, on a CPU) -> `compute(act, fixed, state, x, y)`, which JAX compiles: some arrays of one
            candidate. Few ones, as each array that a program returns costs about 10 µs.
        fixed: arrays that no candidate changes, computed once.
        bytes_each: what the values of one candidate may take at the same time.
        gather: (subject, those arrays of K candidates, the failed ones) -> what was found.
        empty: (subject, K) -> such arrays where every candidate has failed.
        form: how they are computed, as the database keeps it.
        traced: the smallest part of the program that shows whether an operator can be traced with the model.
    """

    kind: Kind
    one: str
    program: Callable[[Subject, bool], Callable[..., tuple[Any, ...]]]
    fixed: Callable[[Subject], Mapping[str, Any]]
    bytes_each: Callable[[Subject], int]
    gather: Callable[[Subject, Sequence[np.ndarray], Mapping[int, str]], Found]
    empty: Callable[[Subject, int], list[np.ndarray]]
    form: Callable[[Subject], dict[str, Any]]
    traced: Callable[[Subject], Callable[..., Any]]
