"""gRDA for Optax: SGD that trains networks sparse."""

from optax_grda._grda import GrdaState as GrdaState
from optax_grda._grda import grda as grda
from optax_grda._grda import grda_params as grda_params
from optax_grda._groups import group_proximal as group_proximal
from optax_grda._heal import FreezeZerosState as FreezeZerosState
from optax_grda._heal import freeze_zeros as freeze_zeros
from optax_grda._health import Health as Health
from optax_grda._health import health as health
from optax_grda._health import health_warnings as health_warnings
from optax_grda._labels import label_by_path as label_by_path
from optax_grda._labels import label_by_rank as label_by_rank
from optax_grda._planning import c_for_sparsity as c_for_sparsity
from optax_grda._planning import predicted_threshold as predicted_threshold
from optax_grda._proximal import group_soft_threshold as group_soft_threshold
from optax_grda._proximal import soft_threshold as soft_threshold
from optax_grda._sparsity import LeafSparsity as LeafSparsity
from optax_grda._sparsity import SparsityReport as SparsityReport
from optax_grda._sparsity import sparsity as sparsity
from optax_grda._sparsity import sparsity_report as sparsity_report
from optax_grda._target import TargetSparsityState as TargetSparsityState
from optax_grda._target import sparsity_ramp as sparsity_ramp
from optax_grda._target import target_sparsity as target_sparsity
