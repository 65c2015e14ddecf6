"""The factor by which a model scales its logits."""

from transformers import PretrainedConfig


def logit_scale(config: PretrainedConfig) -> float:
    """1 for most models. `config` is that of the text model.

    Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it; Cohere multiplies by `logit_scale`.
    """
    if config.model_type.startswith("granite"):
        return 1 / config.logits_scaling
    if config.model_type.startswith("hyperclovax"):
        return float(config.logits_scaling)
    return float(getattr(config, "logit_scale", None) or 1)
