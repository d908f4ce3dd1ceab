"""Which labels of the data the images (contexts) have in which a latent is active, and how many
times more often than all images have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from saekit.indexing.reader import Index

SHOWN = 8
STRONGEST = 20  # images, of which the share is given as well
LEAST = 3  # images with a label: fewer say nothing
# images in all. A label of half the data is on all of n images by chance in 2^-n of cases, at most
# 0.1 % from 10 on; and n of n show a share above 0.05^(1/n) with 95 % confidence: 74 % for 10
# images, 37 % for 3
LEAST_IMAGES = 10
DEVIATIONS = 3.0  # above what as many images drawn by chance have


class LabelCounts:
    """Counts labels in an index; without labels that differ there is nothing to count."""

    def __init__(self, index: Index) -> None:
        self._index, origin = index, index.origin
        self._images_L = self._count(np.arange(len(origin.example_label)))
        self.applies = int((self._images_L > 0).sum()) > 1

    def __call__(self, latent: int) -> dict[str, Any] | None:
        """{"labels": [{"label", "examples", "strongest", "lift"}], "examples", "strongest",
        "least"}.

        `examples` images have an active row of the latent, and `strongest` of these are the 20 with
        the largest; of both, as many have the label. `lift` is the share of the former with the
        label, over the label's share of all images. Labels of at least 3 images, and of 3 standard
        deviations (of a Poisson distribution) more than as many images drawn by chance have, by
        their part p log(p / q) in the Kullback-Leibler divergence of the latent's images from all;
        none where `examples` is below `least`, which is LEAST_IMAGES: that is too few to say.
        None for a latent that never fires, and data without labels.
        """
        origin = self._index.origin
        images = np.unique(origin.examples_of(self._index.activations(latent).rows))
        if not self.applies or not len(images):
            return None
        top = self._index.top(latent, STRONGEST).rows
        strongest = np.searchsorted(origin.example_first, top, side="right") - 1
        active_L, top_L = self._count(images), self._count(strongest)
        share_L = active_L / len(images)
        lift_L = share_L * len(origin.example_first) / np.maximum(self._images_L, 1)
        part_L = share_L * np.log(np.maximum(lift_L, 1))
        chance_L = self._images_L * len(images) / len(origin.example_first)
        told_L = (active_L >= LEAST) & (active_L - chance_L >= DEVIATIONS * np.sqrt(chance_L))
        told_L &= len(images) >= LEAST_IMAGES
        part_L = np.where(told_L, part_L, 0)
        order = np.argsort(-part_L, kind="stable")[:SHOWN]
        return {
            "labels": [
                {
                    "label": origin.labels[n],
                    "examples": int(active_L[n]),
                    "strongest": int(top_L[n]),
                    "lift": float(lift_L[n]),
                }
                for n in order.tolist()
                if part_L[n] > 0
            ],
            "examples": len(images),
            "strongest": len(strongest),
            "least": LEAST_IMAGES,
        }

    def _count(self, images: np.ndarray) -> np.ndarray:
        """(L,): how many of these images have each label."""
        numbers = self._index.origin.example_label[images]
        return np.bincount(numbers[numbers >= 0], minlength=len(self._index.origin.labels))
