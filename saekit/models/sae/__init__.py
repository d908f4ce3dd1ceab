"""The sparse autoencoder that all variants share (saekit.models.sparsity has what makes them
differ)."""

from saekit.models.sae.config import SAEConfig
from saekit.models.sae.module import SAE

__all__ = ["SAE", "SAEConfig"]
