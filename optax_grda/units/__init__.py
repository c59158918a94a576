"""Units of any network, found from its jaxpr, and networks made smaller by them."""

from optax_grda.units._find import find_units as find_units
from optax_grda.units._shrink import shrink as shrink
from optax_grda.units._units import Units as Units
