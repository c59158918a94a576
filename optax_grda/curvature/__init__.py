"""What the loss looks like at a solution."""

from optax_grda.curvature._displacement import Agreement as Agreement
from optax_grda.curvature._displacement import agreement as agreement
from optax_grda.curvature._displacement import (
    projection_fraction as projection_fraction,
)
from optax_grda.curvature._eigenpairs import Eigenpairs as Eigenpairs
from optax_grda.curvature._eigenpairs import top_eigenpairs as top_eigenpairs
from optax_grda.curvature._hessian import GaussNewton as GaussNewton
from optax_grda.curvature._hessian import Hessian as Hessian
from optax_grda.curvature._pruning import directional_pruning as directional_pruning
from optax_grda.curvature._pruning import prune_smallest as prune_smallest
from optax_grda.curvature._pruning import (
    strength_for_sparsity as strength_for_sparsity,
)
from optax_grda.curvature._scores import DirectionalScores as DirectionalScores
from optax_grda.curvature._scores import directional_scores as directional_scores
