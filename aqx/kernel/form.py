"""Which form a traced activation has here: the GPU kernel, or a switch per node."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp

from aqx import pallas
from aqx.errors import InputError
from aqx.kernel.portable import unportable
from aqx.operators import Kind, OperatorTable
from aqx.tree import Tree

Form = Literal["switch", "kernel", "interpreted"]
FORMS: tuple[Form, ...] = ("switch", "kernel", "interpreted")
_log = logging.getLogger(__name__)
_forced: ContextVar[Form | None] = ContextVar("forced", default=None)


@contextlib.contextmanager
def forced(form: str) -> Iterator[None]:
    """Trace activations in one form, whatever devices there are; what was compiled before stays as it is.

    Args:
        form: "switch" for `lax.switch` per node, "kernel" for the kernel where the program is lowered for CUDA (and the
            switch where it is not), "interpreted" for the kernel run by Pallas' interpreter, which is slow.

    Returns:
        The context in which that form is traced.

    Raises:
        InputError: there is no such form.

    Example:
        >>> import aqx, jax
        >>> from aqx import kernel
        >>> with kernel.forced("interpreted"):
        ...     float(jax.jit(lambda act, x: act(x))(aqx.activation("square(x)"), 3.0))
        9.0
    """
    if form not in FORMS:
        raise InputError(f"form={form!r} is not a form of a traced activation; give one of {', '.join(FORMS)}")
    token = _forced.set(form)
    try:
        yield
    finally:
        _forced.reset(token)


def form_in_use() -> Form:
    """Return the form that traced activations have on this machine's devices: "kernel" on CUDA, else "switch".

    Example:
        >>> from aqx import kernel
        >>> with kernel.forced("switch"):
        ...     kernel.form_in_use()
        'switch'
    """
    return _forced.get() or ("kernel" if pallas.trouble() is None else "switch")


def reason() -> str:
    """Return why `form_in_use` is what it is, for people."""
    if _forced.get():
        return "forced"
    return pallas.trouble() or "a CUDA device, and Pallas lowers to it"


def has_kernel(schema: Tree, table: OperatorTable) -> bool:
    """Whether every operator that may stand in a schema has a form for the kernel, and a nodeless schema never."""
    arities = {(node.name, len(node.args)) for node in schema.nodes}
    return bool(arities) and all(_is_portable(table, *each) for each in arities)


@functools.cache
def _is_portable(table: OperatorTable, kind: Kind, arity: int) -> bool:
    return pallas.apart(_all_portable, table, kind, arity)


def _all_portable(table: OperatorTable, kind: Kind, arity: int) -> bool:
    x = jax.ShapeDtypeStruct((8,), jnp.float32)
    for operator in table.by_kind[kind]:

        def slopes(args: tuple[jax.Array, ...], fn: Any = operator.fn) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(lambda *args: fn(*args).astype(args[0].dtype), args, args)

        found = unportable(jax.make_jaxpr(slopes)((x,) * arity))
        if found:
            _log.debug("no kernel for %s functions: %s has no form of %s", kind, operator.name, found)
            return False
    return True
