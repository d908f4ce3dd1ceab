"""One training loop for every autoencoder; checkpoints that resume bit for bit."""
