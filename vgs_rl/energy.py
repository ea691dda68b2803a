"""The target: an unnormalised density p(x) ∝ exp(-E(x)/tau), described by its energy E."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vgs_rl.foreign.gradients import central_differences, given_gradient
from vgs_rl.geometry import Euclidean, Geometry
from vgs_rl.threads import in_callers_thread

if TYPE_CHECKING:
    import ase

    from vgs_rl.chain import Chain
    from vgs_rl.foreign.ase_energy import AseEnergy
    from vgs_rl.foreign.function_energy import FunctionEnergy

Result = TypeVar("Result")
Split = Literal["validation", "test"]
Framework = Literal["torch", "numpy", "jax"]


class Particles(NamedTuple):
    """Symmetry of n particles in d dimensions: translation, rotation, reflection, permutation."""

    n_particles: int
    n_dims: int


class Energy(nn.Module, ABC):
    """Base class of every target.

    A subclass sets ``dim`` and writes :meth:`energy`; the rest is optional and switches on the
    metrics that need it (exact samples, log Z, exact values, mode weights). It keeps its constants
    as buffers, and never touches the global RNG.

    A subclass writes :meth:`energy` and, where it has one, :meth:`energy_and_gradient`. Everybody
    else calls ``energy(x)`` and :meth:`with_gradient`. These hand over a copy of x, check what
    comes back, and give it the type and the device of x. So E may change its x, keep it, compute
    in another type or in another library. An energy is called from the thread that draws samples,
    unless its class says that it is `thread_safe`.

    Attributes:
        dim: ambient dimension D.
        log_z: log ∫ exp(-E(x)) dx at tau = 1, or None where it is unknown.
        symmetry: the particle symmetry of E, or None.
        mode_probabilities: exact expectations, shape (M,), of :meth:`mode_indicators`, or None.
        geometry: the space that the target lives on; Euclidean R^D where none is set.
        data: rows that the energy is learned from, shape (N, D), or None. Only a start of kind
            `data` reads them.
        dtype: floating type that E computes in, or None where it accepts any; states are cast.
        thread_safe: whether several threads may call E at once. A class says it for the methods
            that it defines; one that defines more of them has to say it again.

    Example:
        >>> class Ring(Energy):
        ...     dim = 2
        ...     def energy(self, x):
        ...         return 5.0 * (x.norm(dim=-1) - 3.0) ** 2
        >>> Ring()(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    dim: int
    log_z: float | None
    symmetry: Particles | None
    mode_probabilities: Tensor | None
    geometry: Geometry
    data: Tensor | None
    dtype: torch.dtype | None = None
    thread_safe: bool = False

    # Without values on the class, which would hide a buffer of the same name.
    _OPTIONAL = ("log_z", "symmetry", "mode_probabilities", "geometry", "data")
    # Methods that a thread-safe energy may get from a subclass: threads do not call them.
    _SERIAL = ("__init__", "sample", "reference", "mode_indicators")
    _ADVICE = "write energy_and_gradient(x), or energy(x) in torch operations"
    _differentiable: bool | None = None
    _announced: bool = False

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """See :meth:`forward`."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        kinds = (FunctionType, staticmethod, classmethod, property)
        for base in cls.__mro__:
            if "thread_safe" in vars(base):
                return
            own = {name for name, value in vars(base).items() if isinstance(value, kinds)}
            if own - set(cls._SERIAL):
                cls.thread_safe = False
                return

    def __getattr__(self, name: str) -> Any:
        """A buffer, parameter or module; what is optional and missing is None, or R^D."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in self._OPTIONAL or hasattr(type(self), name):
                raise
        return Euclidean(self.dim) if name == "geometry" else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, but none that would hide a method of this class."""
        if isinstance(vars(Energy).get(name), FunctionType | property):
            if not callable(value):
                raise ValueError(_taken_name(self, name))
            vars(self)["thread_safe"] = False  # that was of the method which this one replaces
        super().__setattr__(name, value)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As every module's; the names of this class's optional attributes are free for it."""
        if name in ("dim", "dtype", "thread_safe") or name in vars(Energy):
            raise ValueError(_taken_name(self, name))
        if name in self._OPTIONAL and name not in vars(self):
            self._buffers[name] = None  # to torch the name is then a buffer's already
        super().register_buffer(name, tensor, persistent)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As every module's; the names of this class's optional attributes are free for it."""
        if name in self._OPTIONAL and name not in vars(self):
            self._parameters[name] = None
        super().register_parameter(name, param)

    # --- energies that are no subclass --------------------------------------------------------

    @staticmethod
    def from_function(
        function: Callable[[Any], Any],
        dim: int,
        *,
        framework: Framework = "torch",
        batched: bool = True,
        gradient: Callable[[Any], Any] | Literal[True] | None = None,
        processes: int = 0,
        dtype: torch.dtype | None = None,
    ) -> FunctionEnergy:
        """An energy that is a function of torch, NumPy or JAX.

        Args:
            function: E of a batch of states, (B, D) -> (B,), or of one, (D,) -> ().
            dim: D.
            framework: what it takes: tensors, NumPy arrays, or JAX arrays.
            batched: whether it takes a batch. If not, JAX batches it by `vmap`; others are called
                for one state after the other.
            gradient: ∇E, a function of the same states; True if `function` returns (E, ∇E). None
                leaves it to autograd (torch), to JAX, or to central differences (NumPy).
            processes: how many processes share a batch, for slow functions of one state. They start
                at the first call and end with the energy. Values do not depend on how many there
                are. The function must stand in a module that can be imported, and a script must do
                its work under ``if __name__ == "__main__":``. Torch functions compute on the CPU.
            dtype: floating type that the function takes. By default NumPy functions take float64,
                others that of the states; JAX has 64 bits for the call if these are float64.

        Raises:
            TypeError: if `function` cannot be called.
            ValueError: if an argument is wrong or does not fit another, if the function cannot be
                sent to another process, or if JAX finds other shapes.
            ImportError: if JAX is needed and is not installed, or older than 0.8.
            vgs_rl.foreign.rows.FunctionError: when called, if the function raises; it says where.

        Example:
            >>> both = lambda x: (0.5 * (x**2).sum(-1), x)
            >>> bowl = Energy.from_function(both, dim=2, framework="numpy", gradient=True)
            >>> bowl.with_gradient(torch.ones(1, 2))
            (tensor([1.]), tensor([[1., 1.]]))
        """
        from vgs_rl.foreign.function_energy import energy_from_function

        return energy_from_function(
            function,
            dim,
            framework=framework,
            batched=batched,
            gradient=gradient,
            processes=processes,
            dtype=dtype,
        )

    @staticmethod
    def from_ase(
        atoms: ase.Atoms | Callable[[], ase.Atoms],
        *,
        temperature_K: float,
        trap: float = 0.0,
        processes: int = 0,
    ) -> AseEnergy:
        """The energy of atoms in units of kT, by their ASE calculator; positions in Å.

        See :class:`vgs_rl.foreign.ase_energy.AseEnergy` for arguments, errors and translation.
        """
        from vgs_rl.foreign.ase_energy import AseEnergy

        return AseEnergy(atoms, temperature_K=temperature_K, trap=trap, processes=processes)

    # --- what a subclass writes ---------------------------------------------------------------

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """E(x) for states x of shape (B, D); returns shape (B,)."""

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D), both detached.

        By automatic differentiation; override it where a closed form is faster. Where autograd
        cannot see through :meth:`energy`, as in one that computes in NumPy, central differences
        stand in, at 2 D more evaluations of E per state, and a warning says so.
        """
        energy = None
        if self._differentiable is not False:
            energy, gradient = self._by_autograd(x)
            self._differentiable = gradient is not None
            if energy is not None and gradient is not None:
                return energy, gradient
        return self._by_differences(x, energy)

    # --- what everybody else calls ------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """E(x), shape (B,), for states x of shape (B, D), in their type and on their device.

        Gradients flow to x, by :meth:`energy_and_gradient` where autograd cannot see through E.

        Raises:
            ValueError: if E does not return a floating tensor of shape (B,).
        """
        if torch.is_grad_enabled() and x.requires_grad and not self.differentiable(x):
            return given_gradient(x, self.with_gradient)
        return self._values(x)

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x), shape (B,), and ∇E(x), shape (B, D), as :meth:`forward`, both detached.

        Raises:
            ValueError: if what comes back has another shape, or no floating type.
        """
        x = x.detach()
        with torch.enable_grad():  # a subclass may differentiate in its own way
            pair: Any = self.hand_over(self.energy_and_gradient, x)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            method = f"{self._called}.energy_and_gradient"
            raise ValueError(f"{method} must return (energy, gradient), got {type(pair).__name__}")
        energy = self._received(pair[0], x, x.shape[:-1], "energy_and_gradient")
        gradient = self._received(pair[1], x, x.shape, "energy_and_gradient")
        return energy.detach(), gradient.detach()

    @property
    def gradient_evaluations(self) -> int:
        """At how many states E is evaluated for E and ∇E at one: 1, with differences 2 D + 1."""
        known = self._gives_gradient or self._differentiable is not False
        return 1 if known else 2 * self.dim + 1

    @property
    def _gives_gradient(self) -> bool:
        """Whether :meth:`energy_and_gradient` has a gradient that it does not look for."""
        return type(self).energy_and_gradient is not Energy.energy_and_gradient

    def differentiable(self, x: Tensor) -> bool:
        """Whether autograd sees through :meth:`energy`: found out once, at the first of x."""
        if self._differentiable is None:
            self._differentiable = self.hand_over(self._by_autograd, x[:1])[1] is not None
        return self._differentiable

    def hand_over(self, method: Callable[..., Result], x: Tensor, *arguments: Any) -> Result:
        """`method` of a copy of x, in the thread that E belongs to and in the type it takes.

        What the method changes in place, or keeps, is then not the caller's.
        """
        given = x.clone() if self.dtype is None else x.to(self.dtype, copy=True)
        if self.thread_safe:
            return method(given, *arguments)
        return in_callers_thread(method, given, *arguments)

    @property
    def _called(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    def _values(self, x: Tensor) -> Tensor:
        return self._received(self.hand_over(self.energy, x), x, x.shape[:-1], "energy")

    def _received(self, values: Tensor, x: Tensor, shape: torch.Size, name: str) -> Tensor:
        """A copy in the type and on the device of x of what `method` returned, once it is right."""
        as_it_is = isinstance(values, Tensor) and values.dtype == x.dtype
        if as_it_is and values.shape == shape and values.device == x.device:
            return values.clone()
        method = f"{self._called}.{name}"
        if not isinstance(values, Tensor):
            raise ValueError(f"{method} must return a tensor, got {type(values).__name__}")
        if values.shape != shape:
            meaning = "(B,)" if len(shape) == 1 else "(B, D)"
            raise ValueError(
                f"{method} must return shape {meaning} = {tuple(shape)}, got {tuple(values.shape)}"
                + ("; sum or squeeze the last dimension" if len(shape) == 1 else "")
            )
        if not values.is_floating_point():
            raise ValueError(f"{method} must return a floating dtype, got {values.dtype}")
        return values.to(x.device, x.dtype, copy=True)

    def _by_autograd(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """E and ∇E at x, as far as an evaluation that autograd follows gives them."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            try:
                energy = self.energy(leaf.clone())
            except RuntimeError as error:  # NumPy takes no tensor that autograd follows
                if "requires grad" not in str(error):
                    raise
                return None, None
            if not energy.requires_grad:
                return energy, None
            (gradient,) = torch.autograd.grad(energy.sum(), leaf, allow_unused=True)
        return energy.detach(), gradient

    @torch.no_grad()
    def _by_differences(self, x: Tensor, energy: Tensor | None) -> tuple[Tensor, Tensor]:
        """E, unless it is known, and ∇E by central differences, in the type that E returns."""
        if not self._announced:
            self._announced = True
            warnings.warn(
                f"{type(self).__name__}.energy hides its gradient from autograd: ∇E is taken by "
                f"central differences, {2 * self.dim} more evaluations per state; {self._ADVICE}",
                stacklevel=2,
            )
        if energy is None:
            energy = self.energy(x.clone())
        return energy, central_differences(self.energy, x, energy)

    # --- what may be known of it --------------------------------------------------------------

    @property
    def can_sample(self) -> bool:
        """Whether :meth:`sample` draws exact samples."""
        return type(self).sample is not Energy.sample

    @property
    def has_value(self) -> bool:
        """Whether the exact values V_t are known."""
        return type(self).value is not Energy.value

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact, independent samples of p at tau = 1, shape (n, D), on the generator's device.

        Raises:
            NotImplementedError: if the target has no exact sampler.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact sampler")

    def reference(self, split: Split = "test") -> Tensor:
        """Shipped reference samples, shape (n, D), for targets without an exact sampler.

        Args:
            split: "validation" samples may guide choices, "test" samples only evaluate.

        Raises:
            NotImplementedError: if none are shipped.
        """
        raise NotImplementedError(f"{type(self).__name__} ships no reference samples")

    def value(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """Exact V_t(x) = -log p~_t(x) at tau = 1, shape (B,): the target noised to step t.

        Raises:
            NotImplementedError: if it is not known.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact values")

    def value_gradient(self, x: Tensor, t: int, chain: Chain) -> Tensor:
        """Exact ∇V_t(x), shape (B, D), detached; by automatic differentiation of :meth:`value`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(leaf.clone(), t, chain).sum(), leaf)
        return gradient

    def mode_indicators(self, x: Tensor) -> Tensor:
        """Statistics h(x) of shape (B, M) whose exact means are ``mode_probabilities``.

        For a mixture these are the posterior probabilities of its components.

        Raises:
            NotImplementedError: if the target names no modes.
        """
        raise NotImplementedError(f"{type(self).__name__} names no modes")


def _taken_name(energy: Energy, name: str) -> str:
    return (
        f"{type(energy).__name__}.{name} cannot hold this: the name is taken by vgs_rl.Energy; "
        "choose another one"
    )
