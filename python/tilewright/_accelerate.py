"""accelerate and restore: one line puts a model on tilewright's layers, one takes it off again."""

import logging
from collections import Counter

import torch

from ._fusion import NOTHING, fused_layers, unfuse
from ._fusion import fuse as fuse_module
from ._fusion_patterns import CONVOLUTION
from ._layers import is_accelerated, is_derived, original_type, replacement, why_left
from ._selection import Entries, Selection

logger = logging.getLogger("tilewright")


def accelerate(
    model: torch.nn.Module,
    *,
    only: Entries = None,
    skip: Entries = None,
    fuse: bool = True,
    fold: bool = False,
) -> torch.nn.Module:
    """Put every supported layer of a model on tilewright's kernels, in place.

    Replaced are modules of exactly these torch.nn types: Conv2d, Linear, LayerNorm, BatchNorm1d/2d/3d, Dropout,
    MultiheadAttention, and TransformerEncoderLayer (whose evaluation shortcut would pass them by). The module objects
    stay and only their class changes, so parameters (tied ones too), buffers, hooks, training flags, dtype, device,
    state_dict keys, optimizers, modules used in several places and wrappers such as DDP's are as before. Left alone are
    subclasses (see only), parametrized and lazy modules, TorchScript, and modules whose forward was replaced.
    :func:`tilewright.summary` says what was replaced and what was left and why; the logger "tilewright" does too.

    Then modules made of such layers, whose forward torch.fx can follow, get them fused: BatchNorm with the ReLU and the
    residual sum behind it, dropout with the sum and the LayerNorm behind it. Such a module runs what was traced from
    its own forward, and its own forward itself wherever a call or the module differs from what was traced. See
    docs/accelerate.md for what is fused, when, and what forward may do; fuse=False for none of it.

    With fold=True, a BatchNorm2d behind a Conv2d is one convolution with it in evaluation (and with a ReLU and a
    residual sum behind it, one op). The layers, their parameters and the state_dict stay as they are: the folded
    weights are a copy beside them, made at the first call, and made anew when a parameter or a statistic was written,
    replaced or moved, and after train() and eval(). In training, and where gradients of the parameters may be wanted,
    the layers run as they do without fold.

    Accelerate before torch.compile, fully_shard or parametrize; torch.ao.quantization and ONNX export want a restored
    model, and torch.jit.script restores what it compiles.

    Args:
        model: the module; may itself be a supported layer.
        only: replace nothing but what these select: types or names, or a list of them. A type selects modules of
            exactly that type, a name the module with that qualified name, a pattern such as "layer?.*" all that it
            matches; each with everything inside. Naming a user's subclass of a supported type replaces it too, if it
            does not override forward.
        skip: leave what these select, in the same way; skip wins over only.
        fuse: fuse neighbouring layers of the modules that only and skip select. False fuses nothing; what an earlier
            call has fused stays so until :func:`restore`.
        fold: fold evaluation's batch norms into the convolutions before them, for inference under torch.no_grad() or
            torch.inference_mode(), or with frozen parameters. What can not be folded runs as without; the logger and
            :func:`tilewright.summary` say what is. It stays so until :func:`restore`.

    Returns:
        model itself.

    Raises:
        TypeError: model is not a torch.nn.Module; only or skip holds something else than Module types and names.
        ValueError: a name matches no module; a type in only can not be replaced; fold=True with fuse=False. The model
            is then unchanged.

    Example:
        >>> model = tilewright.accelerate(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()))
        >>> type(model[0])
        <class 'tilewright.nn.linear.Linear'>
    """
    _require_module("accelerate", model)
    if fold and not fuse:
        raise ValueError("accelerate(): fold=True fuses BatchNorm with Conv2d, so it can not come with fuse=False")
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen, left = Selection("only", only, modules), Selection("skip", skip, modules)
    subclasses = chosen.named_subclasses()
    chosen.refuse_pointless()
    selected: dict[int, tuple[str, torch.nn.Module]] = {}
    kept: set[int] = set()
    for name, module in modules.items():
        if left.holds(name):
            kept.add(id(module))
        elif only is None or chosen.holds(name):
            selected.setdefault(id(module), (name, module))
    targets = [found for key, found in selected.items() if key not in kept]
    replaced: Counter[str] = Counter()
    for name, module in targets:
        if _replaceable(module, subclasses):
            replaced[type(module).__name__] += 1
            module.__class__ = replacement(type(module))
            logger.debug("%s: %s replaced", name or "(the model)", original_type(module).__name__)
    _log_left(modules)
    logger.info("accelerated %s", _counts(replaced))
    if fuse:
        logger.info("fused %s", _counts(_fuse(targets, fold)))
    if fold:
        _log_folded(modules)
    return model


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Give back the torch.nn layers that :func:`accelerate` replaced, in place; the numbers and all state stay.

    Fused layers (LinearAct and the like) have no torch.nn counterpart and stay.

    Args:
        model: any module.

    Returns:
        model itself.

    Raises:
        TypeError: model is not a torch.nn.Module.

    Example:
        >>> type(tilewright.restore(tilewright.accelerate(torch.nn.Linear(8, 8))))
        <class 'torch.nn.modules.linear.Linear'>
    """
    _require_module("restore", model)
    count = 0
    for module in model.modules():
        unfuse(module)
        original = original_type(module)
        if original is not type(module):
            module.__class__ = original
            count += 1
        elif is_derived(module):
            logger.warning("%s derives from tilewright's layer (parametrized since?) and stays", type(module).__name__)
    logger.info("restored %d layers", count)
    return model


def _fuse(targets: list[tuple[str, torch.nn.Module]], fold: bool) -> Counter[str]:
    """Fuse inside each of these modules; how often what was fused."""
    fused: Counter[str] = Counter()
    for name, module in targets:
        plan = fuse_module(module, fold)
        fused.update(fusion.kind for fusion in plan.fusions)
        for fusion in plan.fusions:
            logger.debug("%s: %s fused (%s)", name or "(the model)", fusion.kind, ", ".join(fusion.modules))
        if not plan.fusions and plan.reason != NOTHING:
            logger.debug("%s: %s runs its own forward: %s", name or "(the model)", type(module).__name__, plan.reason)
    return fused


def _log_folded(modules: dict[str, torch.nn.Module]) -> None:
    """How many batch norms of the model a plain call in evaluation folds, as their layers are now."""
    if logger.isEnabledFor(logging.INFO):
        layers = set(modules.values())
        norms = {layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)}
        folded = {layer for m in layers for layer, kind in fused_layers(m) if kind.startswith(CONVOLUTION)}
        count = len(folded & norms)
        logger.info("folds %d of %d BatchNorm2d into the convolution before them", count, len(norms))


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "nothing"


def _require_module(function: str, model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}(): model must be a torch.nn.Module, got {type(model).__name__}")


def _replaceable(module: torch.nn.Module, subclasses: set[type[torch.nn.Module]]) -> bool:
    if is_accelerated(module) or "forward" in vars(module):
        return False
    return type(module) in subclasses or why_left(module) is None


def _log_left(modules: dict[str, torch.nn.Module]) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        for name, module in modules.items():
            reason = None if is_accelerated(module) else why_left(module)
            if reason and not any(module.children()):
                logger.debug("%s: %s left: %s", name or "(the model)", type(module).__name__, reason)
