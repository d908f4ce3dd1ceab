"""Files on disk: activation stores (manifest, writer, reader) and checkpoints. docs/formats.md
describes every file."""
