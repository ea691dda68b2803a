"""Compiled drifts: the same numbers, in parts of one size, from sums written for fusion."""

import os
import shutil

import pytest
import torch
from test_clusters import CHAINS, ENERGIES, make_network, states
from test_guide import make_guided

import vgs_rl
from vgs_rl.networks.base import ValueFunction
from vgs_rl.networks.compiled import CompiledValue
from vgs_rl.networks.pairs import PairSums

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler on this machine"
)


@pytest.mark.parametrize("n", [2, 5, 6])
def test_sums_over_pairs_are_the_same_in_either_layout(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = PairSums(n).double()
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, n, 4, generator=generator, dtype=torch.float64)

    def results() -> list[torch.Tensor]:
        difference = sums.difference(y)
        # The first two change their sign with the order of a pair; the others do not.
        odd, even = difference.pow(3), difference.square() + sums.both(y) + 1.0
        return [sums.net(odd), sums.forces(odd), sums.total(even), sums.all(even)]

    pairs = results()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert sums.difference(y).shape == (3, n * n, 4)
    for one, other in zip(pairs, results(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ENERGIES)
def test_the_gradient_is_the_same_in_the_layout_for_fusion(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (make_network(ENERGIES[name], CHAINS["ve"]), make_guided(ENERGIES[name])):
        x, t = states(ENERGIES[name], 24), torch.arange(24) % 12
        with torch.no_grad():
            expected = value.gradient(x, t)
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                fused, v = value.gradient_part(x, t), value.value(x, t)
        torch.testing.assert_close(fused, expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(v, value.value(x, t))


@pytest.mark.slow
@needs_compiler
def test_a_compiled_gradient_is_the_original_one_for_any_batch() -> None:
    guided = make_guided(ENERGIES["LJ"])
    compiled: ValueFunction = CompiledValue(guided)
    for rows in (40, 700):  # one part that is filled up, and several of which the last one is
        x, t = states(ENERGIES["LJ"], rows), torch.arange(rows) % 12
        torch.testing.assert_close(compiled.gradient(x, 3), guided.gradient(x, 3))
        assert torch.equal(compiled.value(x, t), guided.value(x, t))
        assert not compiled.gradient(x, 3).requires_grad
    torch.testing.assert_close(compiled.gradient(x, t), guided.gradient(x, t))
    with torch.no_grad():  # it follows what is learned later
        for parameter in guided.parameters():
            parameter *= 1.1
    torch.testing.assert_close(compiled.gradient(x, 3), guided.gradient(x, 3))


@pytest.mark.slow
@needs_compiler
def test_a_compiled_sampler_draws_the_same_samples_in_threads() -> None:
    eager, compiled = (
        vgs_rl.load_sampler("DW4", device="cpu", compiled=compiled) for compiled in (False, True)
    )
    for sampler in (eager, compiled):
        sampler.chunk_size = 64
    expected, drawn = eager.sample(150, 1), compiled.sample(150, 1)
    torch.testing.assert_close(drawn.x, expected.x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(drawn.log_weight, expected.log_weight, rtol=1e-3, atol=1e-2)


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"networks of particle systems .* got Linear"):
        CompiledValue(torch.nn.Linear(2, 2))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and there is no 'no-such-c"):
        vgs_rl.load_sampler("LJ13", device="cpu", compiled=True)
