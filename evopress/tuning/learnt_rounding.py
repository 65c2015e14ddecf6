"""The rounding of a layer's weights as numbers that can be learnt, and the gradients at these numbers.

::

    s = (b·high − a·low) / (2^B − 1)        z = round(−a·low / s)
    code = clamp(round(w / s + v) + z, 0, 2^B − 1)        ŵ = s·(code − z)

Every weight w has an offset v. Every group has factors a and b on the ends of its range, which start at 1. Gradients
pass through `round` as if it were the identity. A symmetric grid keeps its zero point.

Source: arXiv 2309.05516, Equations 1 to 4. Unlike there, codes and ranges start from those of another method, the steps
are those of Adam, and an offset has no limit, because the rates of all steps add up to a fixed distance, by default 0.2
steps of the grid. The paper's steps, by the sign of the gradient, move all weights alike, and change codes whose
gradient is mostly noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evopress.tuning.adam import Moments, adam_update
from evopress.weights.base import CompressedWeight
from evopress.weights.grids import storable_scale
from evopress.weights.integer import QuantizedWeight

LEARNABLE = (QuantizedWeight,)
"""The kinds of weight whose rounding can be learnt."""

WITHIN = 0.45
"""At the start, the largest distance of a weight with its offset from its code, in steps. At 0.5, the code changes."""

FACTORS = (0.4, 1.4)
"""The limits of the factors on the ends of a range."""


@dataclass(frozen=True)
class RoundedGroups:
    """What a `LearntRounding` rounds to. `codes` are floats; a weight is inside where its code is not clamped."""

    codes: Float[Tensor, "rows groups size"]
    is_inside: Bool[Tensor, "rows groups size"]
    scale: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]

    def dense(self) -> Float[Tensor, "rows cols"]:
        """The weight that the codes stand for."""
        return ((self.codes - self.zero.unsqueeze(2)) * self.scale.unsqueeze(2)).flatten(1)


@dataclass(frozen=True)
class LearntRounding:
    """The weights of a layer, the ends of their ranges at the start, and the numbers that are learnt. All float32."""

    weight: Float[Tensor, "rows groups size"]
    low: Float[Tensor, "rows groups"]
    high: Float[Tensor, "rows groups"]
    offset: Float[Tensor, "rows groups size"]
    low_factor: Float[Tensor, "rows groups"]
    high_factor: Float[Tensor, "rows groups"]
    packed: QuantizedWeight
    """The weight at the start. It says how the learnt one is stored."""
    moments: tuple[Moments, ...] = ()
    """Adam's, of offset, low_factor and high_factor; empty before the first step."""

    @property
    def learnt(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.offset, self.low_factor, self.high_factor

    @property
    def max_code(self) -> int:
        return 2**self.packed.bits - 1

    def rounded(self) -> RoundedGroups:
        """The codes, and the grid as it is stored."""
        low, high = self.low * self.low_factor, self.high * self.high_factor
        scale = storable_scale((high - low) / self.max_code, self.packed.scales.dtype)
        zero = (-low / scale).round_().clamp_(0, self.max_code)
        if self.packed.symmetric:
            zero = torch.full_like(scale, 2.0 ** (self.packed.bits - 1))
        unlimited = (self.weight / scale.unsqueeze(2)).add_(self.offset).round_().add_(zero.unsqueeze(2))
        codes = unlimited.clamp(0, self.max_code)
        return RoundedGroups(codes, codes == unlimited, scale, zero)

    def gradients(self, gradient: Float[Tensor, "rows cols"]) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients at offset, low_factor and high_factor, from the gradient at the dense weight."""
        now = self.rounded()
        at_weight = gradient.view_as(self.weight)
        at_inside = at_weight * now.is_inside
        steps = now.codes - now.zero.unsqueeze(2)
        at_scale = (at_weight * steps).sum(2) - (at_inside * self.weight).sum(2) / now.scale
        low = self.low * self.low_factor
        at_zero = torch.zeros_like(at_scale)
        if not self.packed.symmetric:
            at_zero = now.scale * (at_inside - at_weight).sum(2)
        at_range = (at_scale + at_zero * low / now.scale.square()) / self.max_code
        at_low = -at_range - at_zero / now.scale
        return at_inside * now.scale.unsqueeze(2), at_low * self.low, at_range * self.high

    def moved(
        self, gradient: Float[Tensor, "rows cols"], *, step: int, rate: float, range_rate: float
    ) -> "LearntRounding":
        """After step 1, 2, … of Adam. `rate` is that of the offsets, and `range_rate` that of the factors."""
        rates = (rate, range_rate, range_rate)
        moments = self.moments or tuple(Moments(torch.zeros_like(t), torch.zeros_like(t)) for t in self.learnt)
        changes, new_moments = zip(
            *(
                adam_update(g, moment, step=step, learning_rate=lr)
                for g, moment, lr in zip(self.gradients(gradient), moments, rates, strict=True)
            ),
            strict=True,
        )
        offset, low_factor, high_factor = (t + change for t, change in zip(self.learnt, changes, strict=True))
        return replace(
            self,
            offset=offset,
            low_factor=low_factor.clamp_(*FACTORS),
            high_factor=high_factor.clamp_(*FACTORS),
            moments=new_moments,
        )

    def pack(self) -> QuantizedWeight:
        """The rounded weight, of the kind and the size that it had at the start."""
        now, packed = self.rounded(), self.packed
        return QuantizedWeight.from_codes(
            now.codes.flatten(1).to(torch.uint8),
            now.scale.to(packed.scales.dtype),
            zeros=None if packed.symmetric else now.zero.to(torch.uint8),
            bits=packed.bits,
        )


def can_learn(kinds: Iterable[type[CompressedWeight]]) -> bool:
    """Whether the rounding of some of these kinds of weight can be learnt."""
    return any(issubclass(kind, LEARNABLE) for kind in kinds)


def rounding_of(weight: Float[Tensor, "rows cols"], packed: QuantizedWeight) -> LearntRounding:
    """The rounding of the dense `weight` that gives the codes of `packed`, on its grid.

    Where a code is not the nearest one, the offset starts just large enough to give this code. So the code can change
    as easily as others.
    """
    scale = packed.scales.float()
    zero = torch.full_like(scale, 2.0 ** (packed.bits - 1)) if packed.zeros is None else packed.zeros.float()
    groups = weight.float().unflatten(1, (-1, packed.group_size))
    ones = torch.ones_like(scale)
    nearest = LearntRounding(
        weight=groups,
        low=-zero * scale,
        high=(2**packed.bits - 1 - zero) * scale,
        offset=torch.zeros_like(groups),
        low_factor=ones,
        high_factor=ones,
        packed=packed,
    )
    codes = packed.codes().view_as(groups).float()
    distance = codes - zero.unsqueeze(2) - groups / scale.unsqueeze(2)
    offset = distance - distance.clamp(-WITHIN, WITHIN)
    return replace(nearest, offset=torch.where(nearest.rounded().codes == codes, 0.0, offset))
