"""The Triton backend: one file per operation. The torch backend in the parent folder is the
specification of each; docs/notes/gpu.md explains them.

Importing this package imports triton. Under TRITON_INTERPRET=1, set before that import, every
kernel runs on the CPU, slowly.
"""
