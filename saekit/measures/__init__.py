"""Figures as pure functions of rows, codes, labels and errors: no store is read, no run is opened,
nothing is drawn."""
