"""Controls: blocks that keep one part of the dynamic block and leave out another.

What a second-order block does well may come from its shared weights alone, or from any ODE at all. These
blocks, in the same skeleton, tell: tied weights without an ODE, an ODE of first order, and the dynamics of
the code that was released with "The Missing U" (Calvo-Ordonez et al., 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Force, conv3
from .ode import Solver, solve


class TiedBlock(nn.Module):
    """Residual steps with one set of weights, `x <- x + f(x, emb)`: no velocity, no damping, no depth.

    As many steps as the solver has; its method is not asked for.
    """

    def __init__(self, c_in: int, c_out: int, emb_dim: int, *, solver: Solver | None = None) -> None:
        super().__init__()
        self.solver = solver or Solver()
        self.enter = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.force, self.film = Force(c_out), nn.Linear(emb_dim, 2 * c_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, c_in, H, W), (B, emb_dim) -> (B, c_out, H, W)."""
        x, film = self.enter(x), self.film(emb)
        for _ in range(self.solver.steps):
            x = x + self.force(x, film)
        return x


class FirstOrderBlock(nn.Module):
    r"""A first-order neural ODE, $x'(\tau) = f(x, \tau, \mathrm{emb})$: Chen et al. (2018), equation 2.

    Leapfrog, which moves a velocity, becomes Euler, which asks for as many forces.
    """

    def __init__(self, c_in: int, c_out: int, emb_dim: int, *, solver: Solver | None = None) -> None:
        super().__init__()
        self.solver = solver or Solver()
        self.enter = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.force, self.film = Force(c_out), nn.Linear(emb_dim, 2 * c_out)
        self.film_slope = nn.Parameter(torch.zeros(2 * c_out))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, c_in, H, W), (B, emb_dim) -> (B, c_out, H, W): the state at tau = 1."""
        film = self.film(emb)

        def slope(tau: Tensor, x: Tensor) -> tuple[Tensor]:
            return (self.force(x, film + tau * self.film_slope),)

        solver = Solver("euler", self.solver.steps) if self.solver.method == "leapfrog" else self.solver
        uses = (film, self.film_slope, *self.force.parameters())
        (x,), _ = solve(slope, (self.enter(x),), solver, uses)
        return x


class ReleasedBlock(nn.Module):
    r"""The released code's block: $x'(\tau) = h(x) + x$, of first order and without any time.

    `h` is instance norm, convolution, softplus, twice; one step of RK4 is its solver. See chapter 16.
    """

    def __init__(self, c_in: int, c_out: int, emb_dim: int, *, solver: Solver | None = None) -> None:
        super().__init__()
        self.solver = solver or Solver("rk4")
        self.enter = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.field = ReleasedField(c_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, c_in, H, W), an embedding that is not used -> (B, c_out, H, W)."""

        def slope(tau: Tensor, x: Tensor) -> tuple[Tensor]:
            return (self.field(x),)

        (x,), _ = solve(slope, (self.enter(x),), self.solver, tuple(self.field.parameters()))
        return x


class ReleasedField(nn.Module):
    """The right-hand side of `ReleasedBlock`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.InstanceNorm2d(width, affine=True), conv3(width, width)
        self.norm2, self.conv2 = nn.InstanceNorm2d(width, affine=True), conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = F.softplus(self.conv1(self.norm1(x)))
        return F.softplus(self.conv2(self.norm2(h))) + x
