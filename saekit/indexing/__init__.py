"""Every activation of a store, by latent and by row: written once, read by search and pages."""
