r"""Proximal maps: from the accumulator and the threshold to the weights.

:func:`soft`, :func:`hard`, ``power(p)``, ``groups(...)`` and ``n_of_m(n, m)`` are for
pytrees: each is, or makes, a function of an accumulator and a scalar threshold, the
``proximal`` of :func:`optax_grda.grda` and its relatives. A function of your own may
stand in their place. What they do to one array, and to thresholds with axes, is
:func:`soft_threshold`, :func:`hard_threshold`, :func:`power_threshold` and
:func:`group_soft_threshold`.

They differ in what becomes of an entry beyond the threshold :math:`L`: the soft
threshold takes :math:`L` off however large it is, the hard one takes nothing off, and
the power :math:`p` is between. All of them make exactly the entries zero that are
within the threshold, in every dtype: narrow dtypes are computed in float32.
"""

from optax_grda.proximal._groups import Groups as Groups
from optax_grda.proximal._groups import group_soft_threshold as group_soft_threshold
from optax_grda.proximal._groups import groups as groups
from optax_grda.proximal._maps import Proximal as Proximal
from optax_grda.proximal._maps import hard as hard
from optax_grda.proximal._maps import power as power
from optax_grda.proximal._maps import soft as soft
from optax_grda.proximal._n_of_m import n_of_m as n_of_m
from optax_grda.proximal._thresholds import hard_threshold as hard_threshold
from optax_grda.proximal._thresholds import power_threshold as power_threshold
from optax_grda.proximal._thresholds import soft_threshold as soft_threshold
