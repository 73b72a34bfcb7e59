# The names of `harness.__getattr__` for type checkers, which do not run it.

from harness.api import Results as Results
from harness.api import adapt as adapt
from harness.api import build_method as build_method
from harness.api import evaluate as evaluate
from harness.api import load_results as load_results
from harness.api import open_backbone as open_backbone
from harness.api import prepare as prepare
from harness.api import run as run
from harness.api import tune as tune
from harness.errors import UserError as UserError

__version__: str
