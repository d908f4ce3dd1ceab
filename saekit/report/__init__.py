"""Pages and charts: one HTML file from the data of saekit.evaluation or of a sweep."""
