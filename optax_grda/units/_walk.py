"""The walk over a jaxpr: every array's axes as terms, and what is known of its entries.

Calls are followed into, so that what is recorded is one program of plain equations.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from optax_grda.units import _values
from optax_grda.units._dims import Dim, freeze, unify
from optax_grda.units._values import Side, Value

# A leaf of params, by its number, and one of its axes.
LeafAxis = tuple[int, int]
Sources = tuple[frozenset[LeafAxis], ...]


@dataclasses.dataclass(eq=False)
class Array:
    """An array of the program.

    Attributes:
      dims: its axes.
      sources: for each axis, the axes of params that run along it, if the array is
        made of params alone.
      data: whether it depends on the inputs.
      value: what is known of its entries, where the walk asks for it.
    """

    dims: tuple[Dim, ...]
    sources: Sources
    data: bool
    value: Value | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(dim.size for dim in self.dims)


@dataclasses.dataclass
class Node:
    """An equation that was walked over; once only, or in a loop or branch."""

    equation: JaxprEqn
    inputs: Sequence[Array]
    outputs: Sequence[Array]
    once: bool


@dataclasses.dataclass
class Contraction:
    """A dot product or convolution, at which units are summed over.

    Attributes:
      sides: the two factors.
      dims: the axes of each.
      output: the result.
      finish: brings a dot product's value to the axes of the output.
      begin: the other way round, of a mask in full.
      back: from a mask of axes (batch, contracted) to masks of the inputs.
      once: whether the equation runs once only, not in a loop or branch.
    """

    sides: tuple[Side, Side]
    dims: tuple[Sequence[Dim], Sequence[Dim]]
    output: Array
    finish: Callable[[Value], Value]
    begin: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], list[np.ndarray]]
    once: bool


Rule = Callable[..., list[Array]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers what the primitives of those names do: rule(walk, equation, *inputs).

    They return the outputs, and unify or freeze axes.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# Equations that run a jaxpr on their operands, and where they have it.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Walk:
    """One pass over a program; what it finds is in its attributes.

    Attributes:
      values: whether to find out what is known of entries.
      produced: the axes of params whose units they produce: those of kernels' outputs,
        biases and embeddings, and not those that a dot product sums over.
      nodes: the equations, in the order in which they run.
      contractions: those that sum over units, where values are asked for.
    """

    def __init__(self, values: bool):
        self.values = values
        self.produced: set[LeafAxis] = set()
        self.nodes: list[Node] = []
        self.contractions: list[Contraction] = []
        self.depth = 0  # in loops and branches

    def array(
        self,
        dims: Sequence[Dim],
        inputs: Sequence[Array],
        value: Callable[[], Value],
        sources: Sources | None = None,
    ) -> Array:
        """An array computed from others."""
        data = any(array.data for array in inputs)
        if data or sources is None:
            sources = (frozenset(),) * len(dims)
        return Array(tuple(dims), sources, data, value() if self.values else None)

    def unknown(self, dims: Sequence[Dim], inputs: Sequence[Array], aval: Any) -> Array:
        """An array computed from others, nobody knows how."""
        value = lambda: _values.unknown(len(dims), aval.dtype)  # noqa: E731
        return self.array(dims, inputs, value)

    def known(self, x: Any, reason: Any) -> Array:
        """A constant."""
        dims = tuple(Dim(length, reason) for length in np.shape(x))
        value = None
        if self.values:
            extended = jnp.issubdtype(x.dtype, jax.dtypes.extended)
            value = (
                _values.unknown(len(dims), x.dtype) if extended else _values.exactly(x)
            )
        return Array(dims, (frozenset(),) * len(dims), False, value)

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[Array], inputs: Sequence[Array]
    ) -> list[Array]:
        """Walks over a jaxpr."""
        variables = [*jaxpr.constvars, *jaxpr.invars]
        found: dict[Any, Array] = dict(zip(variables, [*consts, *inputs], strict=True))

        def read(variable: Any) -> Array:
            if isinstance(variable, Literal):
                return self.known(np.asarray(variable.val), "a constant")
            return found[variable]

        for equation in jaxpr.eqns:
            arrays = [read(variable) for variable in equation.invars]
            outputs = self.step(equation, arrays)
            found.update(zip(equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def run_closed(self, jaxpr: Any, inputs: Sequence[Array]) -> list[Array]:
        """Walks over a jaxpr, with its constants where it has them."""
        # Before JAX 0.12, a jaxpr with constants is of a type of its own.
        values = getattr(jaxpr, "consts", ())
        consts = [self.known(x, "a constant of fn") for x in values]
        return self.run(getattr(jaxpr, "jaxpr", jaxpr), consts, inputs)

    def step(self, equation: JaxprEqn, inputs: Sequence[Array]) -> list[Array]:
        name = equation.primitive.name
        if name in CALLS:
            return self.run_closed(equation.params[CALLS[name]], inputs)
        if name in _STRUCTURED:
            outputs = _STRUCTURED[name](self, equation, inputs)
        else:
            if name not in ("dot_general", "conv_general_dilated"):
                self.meet(inputs)
            outputs = RULES.get(name, freeze_all)(self, equation, *inputs)
        self.nodes.append(Node(equation, inputs, outputs, not self.depth))
        return outputs

    def meet(self, inputs: Iterable[Array]) -> None:
        """Notes that units of params become units of data, if there is data."""
        if any(array.data for array in inputs):
            for array in inputs:
                self.produced.update(*array.sources)

    def loop(
        self,
        body: Callable[[Sequence[Array]], list[Array]],
        init: Sequence[Array],
        reason: Any,
    ) -> list[Array]:
        """Walks over the body of a loop, which maps a carry to the next, and more.

        It is walked over until what is known of the carry holds for every turn; what
        that turn finds counts.
        """
        self.meet([*init, Array((), (), True, None)])
        empty = [(frozenset(),) * len(array.dims) for array in init]
        carry = [
            Array(a.dims, sources, True, a.value)
            for a, sources in zip(init, empty, strict=True)
        ]
        self.depth += 1
        while True:
            nodes, contractions = len(self.nodes), len(self.contractions)
            outputs = body(carry)
            unify_all(carry, outputs, reason)
            if not self.values:
                break
            found = [
                _values.joined([before.value, after.value])  # pyright: ignore
                for before, after in zip(carry, outputs, strict=False)
            ]
            if all(
                _values.equal(value, array.value)  # pyright: ignore
                for value, array in zip(found, carry, strict=True)
            ):
                break
            del self.nodes[nodes:], self.contractions[contractions:]
            carry = [
                dataclasses.replace(array, value=value)
                for array, value in zip(carry, found, strict=True)
            ]
        self.depth -= 1
        return [
            *carry,
            *outputs[len(carry) :],
        ]


def unify_all(some: Sequence[Array], others: Sequence[Array], reason: Any) -> None:
    """Unifies the axes of arrays of the same shapes."""
    for a, b in zip(some, others, strict=False):
        for x, y in zip(a.dims, b.dims, strict=True):
            unify(x, y, reason)


def _avals(equation: JaxprEqn) -> list[Any]:
    return [variable.aval for variable in equation.outvars]


def freeze_all(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    """The rule of primitives that have none."""
    for array in inputs:
        for dim in array.dims:
            freeze(dim, equation)
    return [
        walk.unknown([Dim(n, equation) for n in aval.shape], inputs, aval)
        for aval in _avals(equation)
    ]


def _scan_operands(
    params: dict[str, Any], inputs: Sequence[Array]
) -> tuple[Sequence[Array], Sequence[Array], Sequence[Array]]:
    """What stays, what is carried and what is scanned over."""
    if "ft_in" in params:  # from JAX 0.12 on
        consts, init, xs = map(list, params["ft_in"].update(inputs).unpack())
        return consts, init, xs
    n = params["num_consts"]
    m = n + params["num_carry"]
    return inputs[:n], inputs[n:m], inputs[m:]


def _scan(walk: Walk, equation: JaxprEqn, inputs: Sequence[Array]) -> list[Array]:
    params = equation.params
    consts, init, xs = _scan_operands(params, inputs)
    slices = []
    for array in xs:
        freeze(array.dims[0], equation)
        value = array.value and _values.apply(
            lambda x: x[0], _values.joined_along(array.value, 0)
        )
        slices.append(Array(array.dims[1:], array.sources[1:], array.data, value))
    outputs = walk.loop(
        lambda carry: walk.run_closed(params["jaxpr"], [*consts, *carry, *slices]),
        init,
        equation,
    )
    stacked = [
        Array(
            (Dim(params["length"], equation), *array.dims),
            (frozenset(), *array.sources),
            array.data,
            array.value and _values.apply(lambda x: x[None], array.value),
        )
        for array in outputs[len(init) :]
    ]
    return [*outputs[: len(init)], *stacked]


def _while(walk: Walk, equation: JaxprEqn, inputs: Sequence[Array]) -> list[Array]:
    params = equation.params
    n = params["cond_nconsts"]
    m = n + params["body_nconsts"]
    cond_consts, body_consts, init = inputs[:n], inputs[n:m], inputs[m:]

    def body(carry: Sequence[Array]) -> list[Array]:
        walk.run_closed(params["cond_jaxpr"], [*cond_consts, *carry])
        return walk.run_closed(params["body_jaxpr"], [*body_consts, *carry])

    return walk.loop(body, init, equation)


def _cond(walk: Walk, equation: JaxprEqn, inputs: Sequence[Array]) -> list[Array]:
    _, *operands = inputs
    walk.depth += 1
    branches = [
        walk.run_closed(branch, operands) for branch in equation.params["branches"]
    ]
    walk.depth -= 1
    outputs = []
    for alternatives in zip(*branches, strict=True):
        first, *others = alternatives
        for other in others:
            unify_all([first], [other], equation)
        walk.meet([*alternatives, inputs[0]])
        value = lambda some=alternatives: _values.joined([a.value for a in some])  # noqa: E731
        outputs.append(walk.array(first.dims, [*alternatives, inputs[0]], value))
    return outputs


_STRUCTURED = {"scan": _scan, "while": _while, "cond": _cond}
