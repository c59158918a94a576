"""The networks of the paper, and two of text, in Flax NNX, by name."""

from models._registry import Spec as Spec
from models._registry import create as create
from models._registry import names as names
from models._registry import spec as spec
