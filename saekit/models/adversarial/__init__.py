"""Generators trained against a discriminator: gan, dcgan, cgan, aae."""
