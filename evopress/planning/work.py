"""The work of a run, counted in operations that can be timed one by one, and the cost of each operation.

Let P be the number of weights of a block that multiply a token, V the size of the vocabulary, d the hidden size, D the
draws of a table, and rows × cols the weights in a group of layers that share an input. Then the floating-point
operations of each kind are::

    block        2 P per token: a block runs
    calibrate    4 P per token, and cols² for each group: the dense block with its Hessians, and the compressed block
    solve        ⅔ cols³, rows cols² for each level, and 2 rows cols² for the errors: a group at all levels
    head         2 V d per token: the logits of a model, and their divergence from another model's logits
    table        2 P (2 + 2 (1 + D) + levels) per token: a block's part of a table of switches
    table_head   2 V d (2 + 2 (1 + D)) per token: the head's part, and 2 V d for each level of the head

`decode` stands for a byte of packed weights that is read from the database and decoded. `states` stands for a byte of
hidden states that is read from a file or written to it.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal, NamedTuple

from evopress.models.active_experts import share_of_tokens
from evopress.models.structure import ModelStructure
from evopress.planning.model_size import active_weights, group_shapes
from evopress.planning.planned_run import PlannedRun

Kind = Literal["block", "calibrate", "solve", "head", "table", "table_head", "decode", "states"]


class Operation(NamedTuple):
    """One operation on `windows` windows of `length` tokens, run together.

    `rows` and `cols` are the shape of a group of layers. `draws` is a setting of a table. `block` is the first block of
    the same kind as the one that runs.
    """

    kind: Kind
    windows: int = 0
    length: int = 0
    draws: int = 0
    rows: tuple[int, ...] = ()
    cols: int = 0
    block: int = 0

    @property
    def tokens(self) -> int:
        return self.windows * self.length


class Work(defaultdict[Operation, float]):
    """How many times each operation happens."""

    def __init__(self) -> None:
        super().__init__(float)

    def add_to_blocks(self, operation: Operation, model: ModelStructure, times: float = 1.0) -> None:
        """Add an operation on every block, so many times each."""
        for block, number in Counter(model.alike).items():
            self[operation._replace(block=block)] += number * times


@dataclass(frozen=True)
class Cost:
    """Floating-point operations in the model's type and in float32, and bytes."""

    in_model: float = 0.0
    in_float32: float = 0.0
    num_bytes: float = 0.0


def cost_of(operation: Operation, run: PlannedRun) -> Cost:
    """The cost of one operation. See the head of this module."""
    model = run.model
    block = 2.0 * active_weights(model, operation.block)
    head = 2.0 * model.vocab_size * model.hidden_size
    backward = 2.0 * (1 + operation.draws)
    match operation.kind:
        case "block":
            cost = Cost(in_model=block * operation.tokens)
        case "calibrate":
            cost = Cost(2 * block * operation.tokens, _hessian_operations(run, operation.block) * operation.tokens)
        case "solve":
            cost = Cost(in_float32=_solve_operations(operation, run))
        case "head":
            cost = Cost(in_model=head * operation.tokens)
        case "table":
            cost = Cost(in_model=block * (2 + backward + run.num_levels) * operation.tokens)
        case "table_head":
            cost = Cost(in_model=head * (2 + backward + run.num_head_levels) * operation.tokens)
        case "decode" | "states":
            cost = Cost(num_bytes=1)
    return cost


def _hessian_operations(run: PlannedRun, block: int) -> float:
    """Floating-point operations per token for the Hessians of a block."""
    groups = zip(group_shapes(run.model, block), run.model.layer_groups(block), strict=True)
    return sum(share_of_tokens(run.model, block, first) * cols**2 for (_, cols), (first, *_) in groups)


def _solve_operations(group: Operation, run: PlannedRun) -> float:
    rows, cols = sum(group.rows), group.cols
    if not run.needs_hessians:
        return float(run.num_levels * rows * cols)
    return cols**3 / 1.5 + (run.num_levels + 2.0) * rows * cols**2
