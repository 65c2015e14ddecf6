"""Everything that an evaluation needs, collected in one value."""

from dataclasses import dataclass

from evopress.data.splits import Splits
from evopress.database.manifest import Identity
from evopress.database.store import Database
from evopress.evaluation.evaluator import Evaluator
from evopress.models.language_model import LanguageModel
from evopress.space.units import Space


@dataclass(frozen=True)
class EvaluationContext:
    """A loaded model with its tokens, its space of profiles, and the evaluator of these profiles.

    `database` is None if the job only drops parts, because drops need no database. `identity` holds everything about
    the model that fitness depends on, as JSON.
    """

    lm: LanguageModel
    splits: Splits
    space: Space
    evaluator: Evaluator
    database: Database | None
    identity: Identity
