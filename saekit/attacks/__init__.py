"""Inputs that are changed to deceive a classifier or a latent, or made from nothing to excite one
(docs/attack.md).

| file | |
|---|---|
| gradients.py | the one place that differentiates by pixels |
| pixels.py | pictures as [0,1], the unit of every budget, and as the model takes them |
| scores.py | what is raised: the loss of a class, the activation of a latent |
| balls.py, perturb.py | budgets with their projections; FGSM and projected gradient |
| visualize.py | feature visualization |
| target.py, run.py | the model that a name means; the verb `attack` |
| defense.py | a small classifier, and adversarial training of it |
"""
