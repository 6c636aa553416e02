"""bdc: Boost, Disentangle, Customize.

Multi-LLM tree search leaves verified traces (*boost*), traces are clustered and each cluster trains
a LoRA expert (*disentangle*), and a hypernetwork mixes the experts per request, rank by rank
(*customize*). Method: arXiv 2502.12492.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Solver", "__version__"]

# In a source tree the Triton kernels lie in `kernels/` beside this package; a wheel holds them as `bdc/kernels`.
_root = Path(__file__).resolve().parent.parent
if (_root / "CMakeLists.txt").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from bdc.customize import Solver


def __getattr__(name: str) -> Any:
    # Heavy layers load on first use: `import bdc` stays as light as torch and numpy.
    if name == "Solver":
        from bdc.customize import Solver

        return Solver
    raise AttributeError(f"module 'bdc' has no attribute {name!r}")
