"""Networks in other dtypes."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DType = jax.typing.DTypeLike
Model = TypeVar("Model", bound=nnx.Module)


def recast(model: Model, to: Callable[[DType], DType]) -> Model:
    """A copy that computes and stores in to(dtype), where the model does in dtype."""
    model = nnx.clone(model)
    for module in _modules(model):
        module.dtype = to(module.dtype)
    for variable in _variables(model):
        _store(variable, to(variable.dtype))
    return model


def recast_like(model: nnx.Module, other: nnx.Module) -> None:
    """Gives a model the dtypes of another that has the same layers."""
    for module, like in zip(_modules(model), _modules(other), strict=True):
        module.dtype = like.dtype
    for variable, like in zip(_variables(model), _variables(other), strict=True):
        _store(variable, like.dtype)


def _store(variable: nnx.Variable, dtype: DType) -> None:
    variable.set_value(jax.device_put(np.asarray(variable[...]).astype(dtype)))


def _modules(model: nnx.Module) -> Iterator[Any]:
    """Those that compute in a dtype of their own."""
    for _, module in nnx.iter_modules(model):
        if getattr(module, "dtype", None) is not None:
            yield module


def _variables(model: nnx.Module) -> Iterator[nnx.Variable]:
    """Those that are no random keys or counts."""
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        if isinstance(variable, nnx.Variable) and jnp.issubdtype(
            variable.dtype, jnp.inexact
        ):
            yield variable
