"""Every autoencoder. catalog.py is the one registry; a model knows its mathematics and nothing of
disks, loops or screens."""
