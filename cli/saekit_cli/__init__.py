"""The `saekit` command: one thin file a verb. Each parses, calls the library, prints."""
