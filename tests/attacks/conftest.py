from __future__ import annotations

import by_hand
import pytest
import torch

from saekit.attacks.target import Target, target_of
from saekit.harvesting.classifiers import load_classifier

HOOK = "blocks.1"


@pytest.fixture(scope="session")
def classifier():
    return load_classifier("embedded:digits-vit")


@pytest.fixture(scope="session")
def sae(classifier):
    return by_hand.dictionary(classifier.module.config.hidden_size, "jumprelu").float()


@pytest.fixture(scope="session")
def aim(classifier, sae) -> Target:
    """A dictionary with its model."""
    return target_of(sae, classifier, HOOK)


@pytest.fixture
def network() -> torch.nn.Module:
    """A smooth classifier of (B,2,3,4) in fp64."""
    torch.manual_seed(3)
    layers = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(24, 16), torch.nn.GELU(), torch.nn.Linear(16, 5)
    )
    return layers.double().requires_grad_(False)
