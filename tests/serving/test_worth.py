"""What the served page lists before anything is asked."""

from __future__ import annotations

import torch

import saekit
from saekit.inspection.score import Meaning, Scores
from saekit.serving.worth import _varied


def test_it_begins_with_different_meanings(client, made):
    """As the page of `inspect` does; by score words come again."""
    told = client.send("latents?q=").json
    listed = {brief["index"]: brief["label"] for brief in told["found"]}
    by_score = saekit.features(made.run, made.store, sort="score", top=64)
    assert listed == {row.index: row.label for row in by_score} and told["of"] == len(listed)
    words = [label.split(" ", 1)[1] for label in listed.values() if label]
    plain = [row.label.split(" ", 1)[1] for row in by_score if row.label]
    assert len(set(words[:8])) == 8 > len(set(plain[:8]))


def test_the_second_of_a_word_counts_half():
    labels = ["flag", "Flag ", "cat", "flag", None, "cat"]
    meanings = [label and Meaning("label", label, 9, 10, 0.9) for label in labels]
    scores = Scores(torch.tensor([0.9, 0.8, 0.5, 0.75, 0.2, torch.nan]), meanings)
    # .9, .8 / 2, .5, .75 / 3, .2; the last never fires
    assert _varied(scores.order().tolist(), scores) == [0, 2, 1, 3, 4]
