"""One training loop for every autoencoder; runs that resume bit for bit."""
