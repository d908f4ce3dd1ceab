"""Sparse kernels for autoencoders. Imports torch (and triton) only; notation and formats are in
codes.py.

encode_topk -> SparseCodes -> decode / decode_mse -> sparse_weight_grad; topk_reconstruction is the
whole step as one scalar. Errors are ValueError (wrong arguments) and RuntimeError (not possible on
this device).
"""

from saekit_kernels.codes import Codes, RaggedCodes, SparseCodes, Transpose, from_dense
from saekit_kernels.cost import crossover_l0, floor_ms
from saekit_kernels.crossover import most_active, next_path
from saekit_kernels.decode import Decoded, decode, decode_mse, sampled_products
from saekit_kernels.dispatch import Backend, resolve_backend
from saekit_kernels.encode import (
    encode_abs_topk,
    encode_batchtopk,
    encode_threshold,
    encode_topk,
    encoder_plan,
)
from saekit_kernels.entries import decode_entries, preactivations, signed_topk
from saekit_kernels.grad import sparse_column_sum, sparse_weight_grad
from saekit_kernels.loss import (
    Reconstruction,
    batchtopk_reconstruction,
    relu_reconstruction,
    sigmoid_reconstruction,
    topk_reconstruction,
)
from saekit_kernels.memory import keep_freed_memory
from saekit_kernels.nested import nested_error
from saekit_kernels.optim import AdamSettings, FeatureState, feature_step
from saekit_kernels.select import topk_rows
from saekit_kernels.sigmoid import sigmoid_means
from saekit_kernels.workspace import Workspace, Workspaces

__all__ = [
    "AdamSettings",
    "Backend",
    "Codes",
    "Decoded",
    "FeatureState",
    "RaggedCodes",
    "Reconstruction",
    "SparseCodes",
    "Transpose",
    "Workspace",
    "Workspaces",
    "batchtopk_reconstruction",
    "crossover_l0",
    "decode",
    "decode_entries",
    "decode_mse",
    "encode_abs_topk",
    "encode_batchtopk",
    "encode_threshold",
    "encode_topk",
    "encoder_plan",
    "feature_step",
    "floor_ms",
    "from_dense",
    "keep_freed_memory",
    "most_active",
    "nested_error",
    "next_path",
    "preactivations",
    "relu_reconstruction",
    "resolve_backend",
    "sampled_products",
    "sigmoid_means",
    "sigmoid_reconstruction",
    "signed_topk",
    "sparse_column_sum",
    "sparse_weight_grad",
    "topk_reconstruction",
    "topk_rows",
]
