"""JAX functions: digits, compilations, and what is found before any work."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vgs_rl import Energy
from vgs_rl.foreign.jax_function import filled
from vgs_rl.foreign.rows import FunctionError


@given(st.integers(1, 10**7))
def test_a_batch_is_filled_up_by_a_quarter_at_most(n: int) -> None:
    assert n <= filled(n) <= max(n, 1.25 * n) and filled(filled(n)) == filled(n)


def test_a_doubling_of_the_batch_has_four_shapes() -> None:
    assert len({filled(n) for n in range(1025, 2049)}) == 4


def test_without_jax_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"framework='jax' needs jax.*vgs-rl\[jax\]"):
        Energy.from_function(lambda x: x.sum(-1), 2, framework="jax")


@pytest.fixture
def jnp() -> Any:
    pytest.importorskip("jax", reason="needs the extra jax")
    import jax.numpy

    return jax.numpy


def test_digits_are_those_of_the_states_and_jax_is_set_as_before(jnp: Any) -> None:
    import jax

    types = []

    def energy(x: Any) -> Any:
        types.append(str(x.dtype))
        return (x + 1e-12 - x).sum() * 1e12

    before = jax.config.jax_enable_x64
    foreign = Energy.from_function(energy, 1, framework="jax", batched=False)
    double = foreign(torch.ones(3, 1, dtype=torch.float64))
    single = foreign(torch.ones(3, 1))
    assert jax.config.jax_enable_x64 == before and jnp.ones(1).dtype == jnp.float32
    assert {"float32", "float64"} == set(types)
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    torch.testing.assert_close(double, torch.ones_like(double), rtol=1e-3, atol=0)
    assert torch.equal(single, torch.zeros(3))


def test_batches_of_all_sizes_are_compiled_a_few_times(jnp: Any) -> None:
    traces = 0

    def energy(x: Any) -> Any:
        nonlocal traces
        traces += 1
        return (x**2).sum(-1)

    foreign = Energy.from_function(energy, 2, framework="jax")
    before = traces
    for n in range(65, 129):
        x = torch.randn(n, 2, generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(foreign(x), x.square().sum(-1))
    assert traces - before == 4


def test_results_are_the_callers_own(jnp: Any) -> None:
    foreign = Energy.from_function(lambda x: (x**2).sum(-1), 2, framework="jax")
    x = torch.ones(4, 2)
    first = foreign(x)
    first += 1.0
    assert torch.equal(foreign(x), torch.full((4,), 2.0)) and torch.equal(x, torch.ones(4, 2))


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda x: x.sum(), {}, r"E of shape \(4,\) .* got shape \(\) .*; set batched=False"),
        (
            lambda x: x,
            {"batched": False},
            r"E of shape \(\) .* one state of shape \(3,\), got shap",
        ),
        (lambda x: x.sum(-1).astype(int), {}, "a floating type .* of int32"),
        (lambda x: x.sum(-1), {"gradient": True}, r"must return \(energy, gradient\) where gradi"),
        (lambda x: (x.sum(-1), x.sum(-1)), {"gradient": True}, r"∇E of shape \(4, 3\)"),
        (lambda x: x.sum(-1), {"gradient": lambda x: x[:, :2]}, r"∇E of shape \(4, 3\)"),
    ],
)
def test_wrong_shapes_are_found_at_once(
    jnp: Any, function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Energy.from_function(function, 3, framework="jax", **options)


def test_what_jax_cannot_trace_is_said_at_once_with_its_cause(jnp: Any) -> None:
    def branching(x: Any) -> Any:
        return x.sum() if x[0] > 0 else -x.sum()

    with pytest.raises(
        FunctionError, match="^branching failed where JAX traced it.*Attempted bool"
    ) as e:
        Energy.from_function(branching, 3, framework="jax", batched=False)
    assert e.value.__cause__ is not None and "\n" not in str(e.value)
