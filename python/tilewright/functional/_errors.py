"""The exception types of native's argument parser, for ops that are parsed from a schema."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def native_type_errors(function: Callable[P, R]) -> Callable[P, R]:
    """An argument of a wrong type raises TypeError, as torch's functions do, not the dispatcher's RuntimeError.

    A leading underscore of function's name is not part of what the messages call it.
    """
    name_shown = function.__name__.removeprefix("_")

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if "Expected a value of type" in str(error):
                raise TypeError(f"{name_shown}(): {error}") from None
            # The dispatcher takes None for any tensor; what follows from it is not the user's error.
            for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
                if value is None and function.__annotations__.get(name) is Tensor:
                    message = f"{name_shown}(): argument '{name}' must be Tensor, not NoneType"
                    raise TypeError(message) from None
            raise

    return wrapper


def check_bool(function: str, argument: str, value: object) -> None:
    """Native's error for a flag that is not a bool; the dispatcher would take any number."""
    if not isinstance(value, (bool, torch.SymBool)):
        raise TypeError(f"{function}(): argument '{argument}' must be bool, not {type(value).__name__}")


def check_dropout_arguments(function: str, p: float, training: bool) -> None:
    """Native's errors for a dropout probability outside [0, 1] and for a training flag that is not a bool."""
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    check_bool(function, "training", training)
