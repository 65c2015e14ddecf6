"""Settings of a space: what a unit is, and which units may trade levels."""

from typing import Literal

from pydantic import model_validator

from evopress.runtime.config_class import config_class


@config_class
class SpaceSettings:
    """What the units of a space are.

    `trade`: which units may trade levels. `size`: those with the same number of weights. `kind`: those of the same
    kind, such as all q projections. `any`: all.

    `tie`: which layers form one unit. `none`: every layer is a unit. `expert`: the layers of an expert are one unit.
    `engine`: layers that inference engines fuse are one unit (q, k, v; gate, up; all experts of a block). With
    `engine`, the attention of the first block is never dropped alone, because engines expect one there. `block`: all
    layers of a block are one unit.

    `drops`: what may be dropped in addition to choosing levels of layers. `none`: nothing. `subblock`: single
    attentions and MLPs. `block`: whole blocks.
    """

    trade: Literal["size", "kind", "any"] = "size"
    tie: Literal["none", "expert", "engine", "block"] = "none"
    drops: Literal["none", "subblock", "block"] = "none"

    @model_validator(mode="after")
    def _drops_need_free_trade(self) -> "SpaceSettings":
        if self.drops != "none" and self.trade != "any":
            raise ValueError(
                f"space.drops={self.drops} frees bytes for layers of all sizes, but space.trade={self.trade} does not "
                f"let them trade: set space.trade=any, or use space=joint"
            )
        if self.tie == "block" and self.drops == "subblock":
            raise ValueError(
                "space.tie=block makes a block one unit, but space.drops=subblock drops parts of it: set "
                "space.drops=block, or another space.tie"
            )
        return self
