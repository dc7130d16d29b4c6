"""Finds in a traced graph the steps that one op computes, and writes that op in their place.

- BatchNorm -> ReLU or ReLU6           stands where the BatchNorm stood
- BatchNorm -> add -> ReLU or ReLU6    stands where the sum stood
- dropout -> add [-> LayerNorm]        stands where the sum stood; where others read the sum too, the op gives both
- Conv2d -> any of the first two, or a BatchNorm alone, where batch norms are to be folded: stands where those do

No value between the steps may have another reader. Where a step moves past others (a convolution, a BatchNorm or a
dropout down to the sum, a LayerNorm up to it), those must not write into what it reads nor draw random numbers.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from . import _fused_calls, nn
from ._layers import original_type

CONVOLUTION = "Conv2d"  # what the kinds of all fusions with a convolution begin with
_FUSION = "fusion"  # where the meta of a fused op's node says what it stands for
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ACTIVATION_LAYERS: dict[type, str] = {torch.nn.ReLU: "ReLU", torch.nn.ReLU6: "ReLU6"}
_ACTIVATION_CALLS: dict[Any, str] = {  # functions, and methods by name
    torch.relu: "ReLU",
    torch.relu_: "ReLU",
    torch.nn.functional.relu: "ReLU",
    torch.nn.functional.relu_: "ReLU",
    "relu": "ReLU",
    "relu_": "ReLU",
    torch.nn.functional.relu6: "ReLU6",
}
_WITH_INPLACE = (torch.nn.functional.relu, torch.nn.functional.relu6)  # calls that have such an argument
_ADDS = (operator.add, operator.iadd, torch.add)

# Layers that only compute: no random numbers, and a new result unless they say inplace.
_QUIET = (
    *_BATCH_NORMS,
    nn.Conv2d,
    nn.Linear,
    nn.LayerNorm,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.Linear,
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
    torch.nn.AvgPool2d,
    torch.nn.MaxPool2d,
    torch.nn.AdaptiveAvgPool2d,
    torch.nn.Identity,
    torch.nn.Upsample,
    torch.nn.ReLU,
    torch.nn.ReLU6,
    torch.nn.GELU,
    torch.nn.SiLU,
)
_FRESH = (nn.Conv2d, nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
_FRESH_CALLS = (  # results that nothing else holds
    _fused_calls.batch_norm_activated,
    _fused_calls.batch_norm_add_activated,
    _fused_calls.add_batch_norm_activated,
    _fused_calls.conv_batch_norm,
    _fused_calls.conv_batch_norm_activated,
    _fused_calls.conv_batch_norm_add_activated,
    _fused_calls.conv_add_batch_norm_activated,
)
_WITH_CONVOLUTION: dict[Any, Callable[..., Any]] = {
    _fused_calls.batch_norm_activated: _fused_calls.conv_batch_norm_activated,
    _fused_calls.batch_norm_add_activated: _fused_calls.conv_batch_norm_add_activated,
    _fused_calls.add_batch_norm_activated: _fused_calls.conv_add_batch_norm_activated,
}
_QUIET_FUNCTIONS = (operator.add, operator.sub, operator.mul, operator.truediv, operator.getitem, getattr)


@dataclass(frozen=True)
class Fusion:
    """One op written for several steps: their names and the modules among them, by path."""

    kind: str
    modules: tuple[str, ...]


def rewrite(graph: Graph, modules: dict[str, torch.nn.Module], folds: str | None = None) -> list[Fusion]:
    """Fuse what can be, in place; modules are those that the graph calls, by path.

    folds is the path to the Folds of the module, where its batch norms are to be folded into convolutions.
    """
    rewriter = _Rewriter(graph, modules)
    for node in list(graph.nodes):
        rewriter.batch_norm(node)
    for node in list(graph.nodes):
        rewriter.dropout(node)
    if folds:
        for node in list(graph.nodes):
            rewriter.convolution(node, folds)
    return [node.meta[_FUSION] for node in graph.nodes if _FUSION in node.meta]


class _Rewriter:
    def __init__(self, graph: Graph, modules: dict[str, torch.nn.Module]) -> None:
        self.graph = graph
        self.modules = modules

    def batch_norm(self, last: Node) -> None:
        """Fuse what ends in this node, if that is an activation behind a BatchNorm."""
        name = self._activation(last)
        if name is None:
            return
        activation = name.lower()
        value, empty = self._before_identities(_input(last))
        tail = [last, *empty]
        if len(value.users) != 1:
            return
        if self._calls(value, _BATCH_NORMS):
            fusion = self._fusion(f"BatchNorm + {name}", value, *tail)
            self._write(fusion, value, tail, _fused_calls.batch_norm_activated, value, value.args[0], activation)
            return
        for operand, residual, first in sorted(_operands(value), key=lambda found: found[0], reverse=True):
            norm, empty = self._before_identities(operand)
            in_place = value.target in (operator.iadd, "add_")
            if not self._calls(norm, _BATCH_NORMS) or len(norm.users) != 1 or (in_place and not first):
                continue
            if not self._may_move_down(norm, value):
                continue
            fusion = self._fusion(f"BatchNorm + add + {name}", norm, *empty, *tail)
            values = (norm.args[0], activation, residual)
            if first:
                self._write(fusion, value, tail, _fused_calls.batch_norm_add_activated, norm, *values, in_place)
            else:
                self._write(fusion, value, tail, _fused_calls.add_batch_norm_activated, norm, *values)
            for node in (*empty, norm):
                self.graph.erase_node(node)
            return

    def convolution(self, call: Node, folds: str) -> None:
        """Let this node, if it is a BatchNorm alone or fused, also compute the convolution whose only reader it is."""
        arguments: list[Any] = list(call.args)
        if self._calls(call, (nn.BatchNorm2d,)):
            norm, fusion = str(call.target), self._fusion("BatchNorm", call)
            function: Callable[..., Any] = _fused_calls.conv_batch_norm
        elif call.op == "call_function" and call.target in _WITH_CONVOLUTION:
            norm, fusion = str(arguments.pop(0).target), call.meta[_FUSION]
            function = _WITH_CONVOLUTION[call.target]
        else:
            return
        value, *rest = arguments
        conv, empty = self._before_identities(value)
        if type(self.modules[norm]) is not nn.BatchNorm2d or value in rest:
            return
        if not self._calls(conv, (nn.Conv2d,)) or len(conv.users) != 1 or not self._may_move_down(conv, call):
            return
        with self.graph.inserting_before(call):
            layers = [self.graph.get_attr(path) for path in (folds, str(conv.target), norm)]
            folding = self.graph.call_function(function, (*layers, conv.args[0], *rest))
        within = self._fusion("", conv, *empty).modules
        folding.meta[_FUSION] = Fusion(f"{CONVOLUTION} + {fusion.kind}", (*within, *fusion.modules))
        call.replace_all_uses_with(folding)
        for node in (call, *empty, conv):
            self.graph.erase_node(node)

    def dropout(self, dropout: Node) -> None:
        """Fuse what begins with this node, if that is a dropout before a sum."""
        if (
            not self._calls(dropout, (nn.Dropout,))
            or self.modules[str(dropout.target)].inplace
            or len(dropout.users) != 1
        ):
            return
        total = next(iter(dropout.users))
        found = next(((r, first) for d, r, first in _operands(total) if d is dropout), None)
        if found is None or total.target in (operator.iadd, "add_") or not self._all_quiet(dropout, total):
            return
        residual, first = found
        values = (dropout.args[0], residual, first)
        norm = next((user for user in total.users if self._calls(user, (nn.LayerNorm,))), None)
        if norm is None or (len(total.users) > 1 and not self._all_quiet(total, norm)):
            fusion = self._fusion("dropout + add", dropout)
            self._write(fusion, total, [total], _fused_calls.dropout_add, dropout, *values)
            self.graph.erase_node(dropout)
            return
        with self.graph.inserting_before(total):
            layers = [self.graph.get_attr(str(node.target)) for node in (dropout, norm)]
            if len(total.users) == 1:
                normed = self.graph.call_function(_fused_calls.dropout_add_layer_norm, (*layers, *values))
            else:
                both = self.graph.call_function(_fused_calls.dropout_add_layer_norm_sum, (*layers, *values))
                normed = self.graph.call_function(operator.getitem, (both, 0))
                total.replace_all_uses_with(self.graph.call_function(operator.getitem, (both, 1)))
                norm.args = (total,)
        normed.meta[_FUSION] = self._fusion("dropout + add + LayerNorm", dropout, norm)
        norm.replace_all_uses_with(normed)
        for node in (norm, total, dropout):
            self.graph.erase_node(node)

    def _write(self, fusion: Fusion, place: Node, tail: list[Node], function: Any, layer: Node, *values: Any) -> None:
        """Put function(layer, *values) where place stands, for what tail, last node first, gave; all those vanish."""
        with self.graph.inserting_before(place):
            call = self.graph.call_function(function, (self.graph.get_attr(str(layer.target)), *values))
        call.meta[_FUSION] = fusion
        tail[0].replace_all_uses_with(call)
        for node in dict.fromkeys((*tail, place)):
            self.graph.erase_node(node)

    def _fusion(self, kind: str, *nodes: Node) -> Fusion:
        return Fusion(kind, tuple(str(node.target) for node in nodes if node.op == "call_module"))

    def _calls(self, node: Node, kinds: tuple[type, ...]) -> bool:
        """Whether node calls a layer of exactly one of these kinds with one value."""
        if node.op != "call_module" or type(self.modules[str(node.target)]) not in kinds:
            return False
        return len(node.args) == 1 and isinstance(node.args[0], Node) and not node.kwargs

    def _activation(self, node: Node) -> str | None:
        """The name of the activation that node applies to its first argument, if it does."""
        if self._calls(node, tuple(_ACTIVATION_LAYERS)):
            layer = self.modules[str(node.target)]
            name = _ACTIVATION_LAYERS[type(layer)]
            if name != "ReLU6":
                return name
            bounds = (layer.min_val, layer.max_val)  # a plan compares them by identity: nothing that can be written
            return name if all(type(bound) in (int, float) for bound in bounds) and bounds == (0, 6) else None
        called = _ACTIVATION_CALLS.get(node.target) if node.op in ("call_function", "call_method") else None
        extra = len(node.args) - 1 + len(node.kwargs)
        if extra > (node.target in _WITH_INPLACE) or "input" in node.kwargs:
            return None
        return called if node.args and isinstance(node.args[0], Node) else None

    def _between(self, first: Node, last: Node) -> Iterator[Node]:
        node = first.next
        while node is not last:
            yield node
            node = node.next

    def _before_identities(self, node: Node) -> tuple[Node, list[Node]]:
        """The value that a chain of Identity modules ending in node hands on, none read by others, and the chain."""
        chain = []
        while len(node.users) == 1 and self._calls(node, (torch.nn.Identity,)):
            chain.append(node)
            node = _input(node)
        return node, chain

    def _may_move_down(self, call: Node, place: Node) -> bool:
        """Whether a BatchNorm or a convolution computes the same at place, which comes later."""
        layer, source = self.modules[str(call.target)], _input(call)
        between = list(self._between(call, place))
        for node in between:
            if node.op == "get_attr" and f"{node.target}.".startswith(f"{call.target}."):
                return False
            if node.op == "call_module" and layer in self.modules[str(node.target)].modules():
                return False
        fresh = self._calls(source, _FRESH) or (source.op == "call_function" and source.target in _FRESH_CALLS)
        owned = fresh and len(source.users) == 1  # nobody else could write into it
        return owned or all(self._quiet(node) for node in between)

    def _all_quiet(self, first: Node, last: Node) -> bool:
        return all(self._quiet(node) for node in self._between(first, last))

    def _quiet(self, node: Node) -> bool:
        """Whether node surely neither writes into a tensor that it did not make nor draws random numbers."""
        if node.op == "get_attr":
            return True
        if node.op == "call_function":
            return node.target in _QUIET_FUNCTIONS
        if node.op != "call_module":
            return False
        inside = [m for m in self.modules[str(node.target)].modules() if original_type(m) is not torch.nn.Sequential]
        return all(type(m) in _QUIET and not getattr(m, "inplace", False) for m in inside)


def _input(node: Node) -> Node:
    """What a layer that _calls says yes to is called with."""
    assert isinstance(node.args[0], Node)
    return node.args[0]


def _operands(node: Node) -> list[tuple[Node, Node, bool]]:
    """(one, the other, whether one is the first operand) for both operands of a sum of two values; else nothing."""
    known = (node.op == "call_function" and node.target in _ADDS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if not known or node.kwargs or len(node.args) != 2:
        return []
    one, other = node.args
    if not isinstance(one, Node) or not isinstance(other, Node) or one is other:
        return []
    return [(one, other, True), (other, one, False)]
