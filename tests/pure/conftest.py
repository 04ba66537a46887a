"""Tests that need neither torch nor a GPU; they share the fake device of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
