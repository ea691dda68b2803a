"""A function is the same energy in whatever library and form it is written."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import foreign_functions as functions
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vgs_rl
from vgs_rl import MALA, Energy
from vgs_rl.envs import check_energy
from vgs_rl.foreign.rows import FunctionError

DIM = 3


def jax_form(**options: Any) -> Energy:
    pytest.importorskip("jax", reason="needs the extra jax")
    import jax.numpy as jnp

    def energy(x: Any) -> Any:
        return 0.5 * (x**2).sum(-1) + jnp.cos(x).sum(-1)

    def gradient(x: Any) -> Any:
        return x - jnp.sin(x)

    if options.get("gradient") is True:
        return from_function(lambda x: (energy(x), gradient(x)), framework="jax", **options)
    if options.get("gradient"):
        options["gradient"] = gradient
    return from_function(energy, framework="jax", **options)


def from_function(function: Callable[[Any], Any], **options: Any) -> Energy:
    return Energy.from_function(function, DIM, **options)


ONE, NUMPY = {"batched": False}, {"framework": "numpy"}
FORMS: dict[str, Callable[[], Energy]] = {
    "torch": lambda: from_function(functions.torch_energy),
    "torch, pair": lambda: from_function(functions.torch_energy_and_gradient, gradient=True),
    "torch, second": lambda: from_function(
        functions.torch_energy, gradient=functions.torch_gradient
    ),
    "torch, one": lambda: from_function(functions.torch_energy, **ONE),
    "torch, one, pair": lambda: from_function(
        functions.torch_energy_and_gradient, gradient=True, **ONE
    ),
    "torch, one, second": lambda: from_function(
        functions.torch_energy, gradient=functions.torch_gradient, **ONE
    ),
    "numpy": lambda: from_function(functions.batch_energy, **NUMPY),
    "numpy, pair": lambda: from_function(
        functions.batch_energy_and_gradient, gradient=True, **NUMPY
    ),
    "numpy, second": lambda: from_function(
        functions.batch_energy, gradient=functions.gradient, **NUMPY
    ),
    "numpy, one": lambda: from_function(functions.energy, **ONE, **NUMPY),
    "numpy, one, pair": lambda: from_function(
        functions.energy_and_gradient, gradient=True, **ONE, **NUMPY
    ),
    "numpy, one, second": lambda: from_function(
        functions.energy, gradient=functions.gradient, **ONE, **NUMPY
    ),
    "jax": jax_form,
    "jax, pair": lambda: jax_form(gradient=True),
    "jax, second": lambda: jax_form(gradient="second"),
    "jax, one": lambda: jax_form(**ONE),
    "jax, one, pair": lambda: jax_form(gradient=True, **ONE),
    "jax, one, second": lambda: jax_form(gradient="second", **ONE),
}
DIFFERENCES = {"numpy", "numpy, one"}  # nobody knows their gradient
pytestmark = pytest.mark.filterwarnings("ignore:.*hides its gradient")


def states(n: int = 20, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randn(n, DIM, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_energy(form: str, dtype: torch.dtype) -> None:
    energy, x = FORMS[form](), states(dtype=dtype)
    digits = 1e-5 if dtype == torch.float32 else 1e-9 if form in DIFFERENCES else 1e-14
    close = {"rtol": digits, "atol": 10 * digits}
    value, gradient = energy.with_gradient(x)
    torch.testing.assert_close(energy(x), functions.torch_energy(x), **close)
    torch.testing.assert_close(value, functions.torch_energy(x), **close)
    torch.testing.assert_close(gradient, functions.torch_gradient(x), **close)
    leaf = x.clone().requires_grad_(True)
    (3.0 * energy(leaf)).sum().backward()  # as PIS does
    torch.testing.assert_close(leaf.grad, 3.0 * functions.torch_gradient(x), **close)
    assert energy(x[:0]).shape == (0,) and energy.with_gradient(x[:0])[1].shape == (0, DIM)
    assert energy.gradient_evaluations == (2 * DIM + 1 if form in DIFFERENCES else 1)


@pytest.mark.parametrize("form", ["torch, one, second", "numpy, second", "numpy, one", "jax, one"])
def test_every_form_passes_the_check_and_is_copied(form: str) -> None:
    energy = FORMS[form]()
    check_energy(energy)
    assert torch.equal(copy.deepcopy(energy)(states()), energy(states()))


def test_a_function_of_one_state_gets_one_that_it_may_change() -> None:
    energy = from_function(functions.hasty, gradient=functions.gradient, **ONE, **NUMPY)
    torch.testing.assert_close(
        energy.with_gradient(states())[1], functions.torch_gradient(states())
    )


def test_a_function_of_a_batch_may_change_it_before_the_gradient_is_asked_for() -> None:
    def hasty(x: Any) -> Any:
        value = functions.batch_energy(x)
        x *= 0.0
        return value

    energy = from_function(hasty, gradient=functions.gradient, **NUMPY)
    torch.testing.assert_close(
        energy.with_gradient(states())[1], functions.torch_gradient(states())
    )


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_numpy_gets_double_precision_unless_it_is_told_otherwise(dtype: Any) -> None:
    seen = set()

    def energy(x: Any) -> Any:
        seen.add(x.dtype)
        return functions.batch_energy(x)

    from_function(energy, dtype=dtype, **NUMPY)(states(dtype=torch.float32))
    assert seen == {np.dtype("float64" if dtype is None else "float32")}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=DIM, max_size=DIM), st.floats(0.1, 10))
def test_differences_of_a_quadratic_are_its_gradient(x: list[float], k: float) -> None:
    def energy(y: Any) -> float:
        return 0.5 * k * float(y @ y)

    at = torch.tensor([x], dtype=torch.float64)
    slope = from_function(energy, **ONE, **NUMPY).with_gradient(at)[1]
    torch.testing.assert_close(slope, k * at, rtol=1e-8, atol=1e-8 * k * (1 + 50))


def test_differences_are_announced_with_what_to_do() -> None:
    with pytest.warns(UserWarning, match=r"6 more evaluations per state; compute in torch, or giv"):
        FORMS["numpy"]().with_gradient(states())


def test_a_numpy_function_is_sampled() -> None:
    def bowl(x: Any) -> Any:
        return 0.5 * (x**2).sum(-1) / 4, x / 4

    energy = from_function(bowl, gradient=True, **NUMPY)
    x = MALA(energy, num_chains=200, num_steps=200, scale=2.0).sample(2_000, 1).x
    assert abs(float(x.square().mean()) - 4.0) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"framework": "tensorflow"}, "framework must be one of torch, numpy, jax, got 'tensorf"),
        ({"batched": 1}, "batched must be True or False, got 1"),
        ({"gradient": False}, "gradient must be None, True .* or a function, got False"),
        ({"processes": -1}, "processes must be at least 0, got -1"),
        ({"processes": 2}, "processes must be 0 for a function of a batch, got 2"),
        ({"processes": 2, "framework": "jax"}, "processes must be 0 for framework='jax'"),
        ({"dtype": torch.int64}, "dtype must be a floating torch.dtype or None, got torch.int64"),
        ({"dtype": torch.bfloat16, **NUMPY}, "dtype must be one that NumPy has"),
    ],
)
def test_a_mistake_names_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Energy.from_function(functions.energy, **{"dim": DIM, **options})


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="function must be callable, got 3"):
        from_function(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [NUMPY, ONE | NUMPY, ONE])
def test_an_error_of_the_function_says_where_and_has_its_cause(options: dict[str, Any]) -> None:
    def failing(x: Any) -> Any:
        if float(x.reshape(-1, DIM)[:, 0].max()) >= 7.0:
            raise ZeroDivisionError("no inverse\nof this")
        return x.sum(-1)

    x = states(4)
    x[2, 0] = 7.0
    where = r"state 2 of 4, x = \[ 7\. .*\]" if options.get("batched") is False else "states of sha"
    with pytest.raises(FunctionError, match=f"^failing failed on {where}") as caught:
        from_function(failing, **options)(x)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert str(caught.value).endswith("ZeroDivisionError: no inverse")
    with pytest.raises(ValueError, match="failed on .*<lambda> failed on"):  # before any work
        vgs_rl.VGS(from_function(lambda x: failing(x + 100.0), **options))


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda x: x.sum(), NUMPY, r"energies of shape \(5,\) .* got shape \(\) .*batched=False"),
        (
            lambda x: x.sum(-1, keepdims=True),
            NUMPY,
            r"energies of shape \(5,\) .*, got shape \(5, ",
        ),
        (lambda x: x.sum(-1) * 1j, NUMPY, "must return real energies .* of complex128"),
        (lambda x: None, NUMPY, r"got shape \(\) of object"),
        (lambda x: x.sum(-1), NUMPY | {"gradient": True}, r"must return \(energy, gradient\) wher"),
        (
            lambda x: (x.sum(-1), x.sum(-1)),
            NUMPY | {"gradient": True},
            r"gradients of shape \(5, 3",
        ),
        (lambda x: x, NUMPY | ONE, r"one real number for one state, got shape \(3,\)"),
        (lambda x: "low", NUMPY | ONE, "one real number for one state, .*'low'"),
        (lambda x: x.sum(), NUMPY | ONE | {"gradient": True}, r"must return \(energy, gradient\)"),
        (
            lambda x: (x.sum(), 1.0),
            NUMPY | ONE | {"gradient": True},
            r"real of shape \(3,\), got s",
        ),
        (lambda x: x, {}, r"energy_and_gradient must return shape \(B,\) = \(5,\), got \(5, 3\)"),
        (lambda x: x, ONE, r"energy_and_gradient must return shape \(B,\) = \(5,\), got \(5, 3"),
        (lambda x: 3.0, ONE, "must return tensors, got float"),
        (
            lambda x: x.sum(-1),
            {"gradient": True},
            r"must return \(energy, gradient\) where gradien",
        ),
    ],
)
def test_what_a_function_must_not_return_is_named(
    function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_function(function, **options).with_gradient(states(5))


def test_without_ase_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"Energy.from_ase needs ase.*vgs-rl\[ase\]"):
        Energy.from_ase(None, temperature_K=300.0)  # type: ignore[arg-type]
