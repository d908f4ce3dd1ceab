"""Train the ViT that ships as embedded:digits-vit.

    python -m saekit.embedded.digits_vit.train [--out FOLDER]

Data: embedded:digits, 80 % for training and 20 % held out (stratified, seed 0). Augmentation:
shifts by up to one pixel, because 1,437 images are few for a model without the inductive bias of
convolutions. The averaged weights (EMA) are saved. Without --out the shipped files are replaced.

Measured with the command above: 98.9 % held-out accuracy (356 of 360) after the last epoch, and the
same bytes on a second run (torch 2.13.0); 334 and 353 s on two cores that were shared with other
work. The settings were chosen with the held-out images in view, so the accuracy is slightly
optimistic; there was no third split.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from saekit.embedded import digits
from saekit.embedded.digits_vit import FOLDER
from saekit.embedded.silence import quiet_transformers

SEED = 0
EPOCHS = 80
BATCH = 64
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
EMA = 0.995
MEAN = STD = 0.5  # of pixels in [0, 1]; preprocessor_config.json repeats them

ARCHITECTURE: dict[str, Any] = dict(
    image_size=digits.SIZE,
    patch_size=1,
    num_channels=1,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=256,
    initializer_range=0.1,
    num_labels=10,
)
PREPROCESSOR = dict(
    image_processor_type="ViTImageProcessor",
    do_resize=True,
    size=dict(height=digits.SIZE, width=digits.SIZE),
    resample=2,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=[MEAN],
    image_std=[STD],
)


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pixels (N,1,8,8) and labels (N,), then the held-out ones; normalized as the
    preprocessor does."""
    from sklearn.model_selection import train_test_split

    pixels, labels = digits.arrays()
    x_B1HW = (torch.from_numpy(pixels).float().div(255).unsqueeze(1) - MEAN) / STD
    y_B = torch.from_numpy(labels)
    train, held_out = train_test_split(
        range(len(y_B)), test_size=0.2, stratify=labels, random_state=SEED
    )
    return x_B1HW[train], y_B[train], x_B1HW[held_out], y_B[held_out]


def shifted(x_B1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions, the rest is background."""
    padded = nnf.pad(x_B1HW, (1, 1, 1, 1), value=-MEAN / STD)
    down_B, right_B = torch.randint(0, 3, (2, len(x_B1HW)), generator=generator)
    span = torch.arange(digits.SIZE)
    rows_BH1, columns_B1W = (
        (down_B[:, None] + span)[:, :, None],
        (right_B[:, None] + span)[:, None, :],
    )
    return padded[torch.arange(len(x_B1HW))[:, None, None], 0, rows_BH1, columns_B1W].unsqueeze(1)


@torch.no_grad()
def start_embeddings(model: Any) -> None:
    """Positions start as 2-D sines and cosines, pixels at the same scale. From the default noise of
    0.02 for both, the model has 84 % held-out accuracy after 60 epochs: a pixel by itself is only a
    gray value, so its position must be clear from the start."""
    torch.nn.init.normal_(model.vit.embeddings.patch_embeddings.projection.weight, std=0.3)
    table_1TD = model.vit.embeddings.position_embeddings
    quarter = table_1TD.shape[-1] // 4
    angle_SQ = torch.arange(digits.SIZE)[:, None] * (math.pi / 10 ** torch.linspace(0, 1, quarter))
    wave_SE = torch.cat((angle_SQ.sin(), angle_SQ.cos()), dim=1)
    rows_HWE = wave_SE[:, None].expand(-1, digits.SIZE, -1)
    table_1TD[0, 1:] = 0.3 * torch.cat((rows_HWE, rows_HWE.transpose(0, 1)), dim=2).flatten(0, 1)


@torch.no_grad()
def accuracy(model: torch.nn.Module, x_B1HW: Tensor, y_B: Tensor) -> float:
    model.eval()
    return (model(pixel_values=x_B1HW).logits.argmax(-1) == y_B).float().mean().item()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine to zero."""
    warmup = steps // 20
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(epochs: int = EPOCHS) -> tuple[Any, float]:
    """(averaged transformers model, held-out accuracy)."""
    from transformers import ViTConfig, ViTForImageClassification

    # Data, model, optimizer.
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    x_B1HW, y_B, x_held_out, y_held_out = split()
    model = ViTForImageClassification(ViTConfig(**ARCHITECTURE))
    start_embeddings(model)
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    steps, step = epochs * math.ceil(len(y_B) / BATCH), 0
    # Epochs.
    loss = torch.tensor(math.nan)
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(y_B), generator=generator).split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            logits = model(pixel_values=shifted(x_B1HW[rows], generator)).logits
            loss = nnf.cross_entropy(logits, y_B[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 1 - min(EMA, step / (step + 10)))
        if (epoch + 1) % 5 == 0:
            print(
                f"epoch {epoch + 1:3d}  loss {loss.item():.3f}  held out"
                f" {accuracy(averaged, x_held_out, y_held_out):.4f}",
                flush=True,
            )
    return averaged.eval(), accuracy(averaged, x_held_out, y_held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the ViT of embedded:digits-vit")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    start = time.perf_counter()
    model, held_out = train(arguments.epochs)
    with quiet_transformers():
        model.save_pretrained(arguments.out)
    (arguments.out / "preprocessor_config.json").write_text(
        json.dumps(PREPROCESSOR, indent=2, sort_keys=True) + "\n"
    )
    print(
        f"held-out accuracy {held_out:.4f} after {arguments.epochs} epochs,"
        f" {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
