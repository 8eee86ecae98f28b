"""`aqx export …`: a found function, taken to where it is trained."""

from __future__ import annotations

from pathlib import Path

import click

from aqx.cli.commands import main

TARGETS = ("jax", "flax-linen", "flax-nnx", "torch", "keras", "numpy", "latex")


@main.command(
    needs="only the function's name.",
    examples=['aqx export "max(relu(x),tanh(x))" --to torch --name MaxReluTanh -o activation.py'],
)
@click.argument("function", metavar="FN")
@click.option("--to", required=True, type=click.Choice(TARGETS), help="The framework, or latex for the formula.")
@click.option("--name", metavar="NAME", help="Of the function or class; default activation or Activation.")
@click.option("-o", "--out", metavar="FILE", help="Write to this file; default print.")
def export(function: str, to: str, name: str | None, out: str | None) -> None:
    """Write a function as source of a framework.

    It imports nothing but the framework, and its values and gradients are those of aqx.
    """
    from aqx.export import source

    text = source(function, to, name)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        Path(out).write_text(text, "utf-8")
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise click.UsageError(f"--out: cannot write {out!r}: {reason}", click.get_current_context()) from error
    click.echo(f"{function} written to {out}")
