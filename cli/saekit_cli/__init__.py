"""The `saekit` command: one thin file per verb. Each parses, calls the library, prints."""
