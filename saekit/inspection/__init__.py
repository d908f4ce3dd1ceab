"""Features -> FeatureRecords -> a page: the scan, relations between latents, and the explorer of
it."""
