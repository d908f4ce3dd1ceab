"""Measures as pure functions of rows, codes, labels and errors: they read no store, open no run and
draw nothing."""
