"""Language models for computations that need no tokenizer."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from evopress.models.language_model import LanguageModel
from evopress.models.structure import ModelStructure


def untokenized(structure: ModelStructure) -> LanguageModel:
    """The model with a tokenizer that knows no tokens, unless it already has one."""
    if isinstance(structure, LanguageModel):
        return structure
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    return LanguageModel(model=structure.model, tokenizer=empty, family=structure.family, name=structure.name)
