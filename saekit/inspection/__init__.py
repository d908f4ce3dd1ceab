"""Features -> FeatureRecords -> a page: relations between latents, and the explorer of
it."""
