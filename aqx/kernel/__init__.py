"""One GPU kernel for every function of a shape: what a traced `Activation` is on CUDA.

A function whose opcodes are traced is elsewhere a `lax.switch` per node, which is slow on a GPU: alone it breaks XLA's
fusions, and under vmap it evaluates every operator of the table. Here it is one kernel (Pallas, lowered to Triton) that
reads the opcodes and branches inside: one pass over memory forward, one backward, and under vmap the candidates become
an axis of its grid. See `form_in_use` for when.
"""

from aqx.kernel.form import FORMS, forced, form_in_use, reason
from aqx.kernel.jets import VALUE, variables_of, walk
from aqx.kernel.primitive import apply
from aqx.kernel.switch import derivatives

__all__ = ["FORMS", "VALUE", "apply", "derivatives", "forced", "form_in_use", "reason", "variables_of", "walk"]
