"""A kernel's work that is checked and laid out, and not done yet.

Between two kernels Python runs in caches full of weights, and takes several times as long there. So whoever has several to run
prepares them all, and then runs them one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Prepared(NamedTuple):
    """What a kernel will give.

    Attributes
    ----------
    output : float32, not filled before ``run``; its shape and where it lies are final
    run : reads the inputs and fills the output
    """

    output: F32
    run: Callable[[], object]

    def now(self) -> F32:
        """Run, and give the output."""
        self.run()
        return self.output
