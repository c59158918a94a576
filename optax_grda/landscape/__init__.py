"""What the loss looks like between and around solutions."""

from optax_grda.landscape._bezier import Bezier as Bezier
from optax_grda.landscape._bezier import bend_loss as bend_loss
from optax_grda.landscape._bezier import train_bend as train_bend
from optax_grda.landscape._evaluate import barrier_height as barrier_height
from optax_grda.landscape._evaluate import evaluate_along as evaluate_along
from optax_grda.landscape._evaluate import evaluate_grid as evaluate_grid
from optax_grda.landscape._norms import l2_over_l1 as l2_over_l1
from optax_grda.landscape._plane import Plane as Plane
from optax_grda.landscape._plane import PlanePoint as PlanePoint
