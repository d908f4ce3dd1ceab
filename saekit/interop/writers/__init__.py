"""Formats that we write, each a module with SAYS and write (saekit.interop.outgoing)."""
