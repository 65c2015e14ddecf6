"""The operations of a run on tokens, for a sample of its model. They call the same code as the run."""

import torch

from evopress.database.calibration import CalibrationStates
from evopress.database.layer_groups import groups_of_block
from evopress.evaluation.metrics import FinalStates, divergences
from evopress.evaluation.switch_gradients import ForwardPass, block_gradients, head_gradients
from evopress.evaluation.switch_products import SwitchProducts
from evopress.planning.sample import Sample, Timeable
from evopress.planning.work import Operation

HEADS = 5
"""How many models have their logits compared at once."""


def block(sample: Sample, operation: Operation) -> Timeable:
    """Runs the block with replaced weights, as the evaluator does."""
    lm, index, states, kwargs = sample.lm, operation.block, sample.states(operation), sample.kwargs(operation)
    weights = {local: lm.linear(index, local).weight for local in lm.layers(index)}
    return Timeable(lambda: lm.run_block(index, states, kwargs[index], weights=weights))


def calibrate(sample: Sample, operation: Operation) -> Timeable:
    """Runs the block and adds up its Hessians, then runs it again to advance to the next block."""
    lm, index, kwargs = sample.lm, operation.block, sample.kwargs(operation)
    states = CalibrationStates(lm=lm, batches={0: [sample.states(operation)]}, kwargs=kwargs, num_chunks=1)
    groups = groups_of_block(lm, index)

    def call() -> None:
        states.add_inputs(states.zero_hessians(groups), index, 0, states.batches[0])
        states.advance(index, {})

    return Timeable(call)


def head(sample: Sample, operation: Operation) -> Timeable:
    """Computes the logits of a teacher and of students, and compares each student with the teacher."""
    teacher, student = (FinalStates(sample.states(operation), sample.lm.logits) for _ in range(2))
    tokens = torch.zeros(operation.windows, operation.length, dtype=torch.long, device=sample.lm.device)
    students, chunk_tokens = [student] * (HEADS - 1), sample.run.job.evaluator.head_tokens
    return Timeable(lambda: divergences(teacher, students, tokens=tokens, chunk_tokens=chunk_tokens), HEADS)


def table(sample: Sample, operation: Operation) -> Timeable:
    """The block's part of a table: two forward passes, the gradients, and the products with all levels."""
    lm, model, profile = sample.lm, sample.compressible, sample.compressible.space.uniform(0)
    index, states, kwargs = operation.block, sample.states(operation), sample.kwargs(operation)
    choices = model.choices(profile)
    forward = ForwardPass(choices, model.embedding_and_head(profile), [states] * lm.num_blocks, kwargs)
    gradients = [sample.states(operation) for _ in range(1 + operation.draws)]
    products = SwitchProducts(model, profile, num_gradients=len(gradients), num_tokens=operation.tokens)

    def call() -> None:
        lm.run_block(index, states, kwargs[index])
        lm.run_block(index, states, kwargs[index], weights=model.block_weights(index, choices[index]))
        products.add_block(index, block_gradients(model, forward, index, gradients)[1])

    return Timeable(call)


def table_head(sample: Sample, operation: Operation) -> Timeable:
    """The head's part of a table."""
    model, profile = sample.compressible, sample.compressible.space.uniform(0)
    normed, dense_normed = (sample.states(operation).flatten(0, 1) for _ in range(2))
    weight, draws = model.embedding_and_head(profile).head, operation.draws
    products = SwitchProducts(model, profile, num_gradients=1 + draws, num_tokens=operation.tokens)

    def call() -> None:
        first_token = 0
        for chunk in head_gradients(sample.lm, normed, dense_normed, head=weight, draws=draws, seed=0):
            products.add_head(chunk, first_token=first_token)
            first_token += len(chunk.inputs)

    return Timeable(call)
