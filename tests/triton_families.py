"""The Triton families that are here, and the compiler's answer to a variant."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tilewright.triton import FAMILIES
from tilewright.triton.variants import Variant

PRESENT = [family for family in FAMILIES if find_spec(f"tilewright.triton.{family}") is not None]


def module(family: str) -> Any:
    return import_module(f"tilewright.triton.{family}")


def variants(family: str, architecture: int) -> list[Variant]:
    return module(family).variants(architecture)


def own_variants(family: str, architecture: int) -> list[Variant]:
    """Those that no later family has: linear launches matmul's products."""
    others = {v for other in PRESENT[PRESENT.index(family) + 1 :] for v in variants(other, architecture)}
    return [v for v in variants(family, architecture) if v not in others]
