"""gRDA for Optax: SGD that trains networks sparse."""

from optax_grda import curvature as curvature
from optax_grda import diagnostics as diagnostics
from optax_grda import landscape as landscape
from optax_grda import packing as packing
from optax_grda import proximal as proximal
from optax_grda import units as units
from optax_grda._dual_averaging import DualAveragingState as DualAveragingState
from optax_grda._dual_averaging import Law as Law
from optax_grda._dual_averaging import dual_averaging as dual_averaging
from optax_grda._dual_averaging import grda_params as grda_params
from optax_grda._freeze import FreezeZerosState as FreezeZerosState
from optax_grda._freeze import freeze_zeros as freeze_zeros
from optax_grda._grda import grda as grda
from optax_grda._labels import label_by_path as label_by_path
from optax_grda._labels import label_by_rank as label_by_rank
from optax_grda._sparsity import SparsityReport as SparsityReport
from optax_grda._sparsity import sparsity as sparsity
from optax_grda._sparsity import sparsity_report as sparsity_report
from optax_grda._target import sparsity_ramp as sparsity_ramp
from optax_grda._target import target_sparsity as target_sparsity

__version__ = "0.1.0"
