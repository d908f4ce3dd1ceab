"""Features -> FeatureRecords -> a page: the scan, what it relates, and the explorer that shows
it."""
