"""What every measured process is given, and what it is not."""

import os
from pathlib import Path

from cli.demo import KEPT_SETTINGS


def clean_environment(root: Path) -> dict[str, str]:
    """Return this process's environment without settings of the service, and without numpy.

    numpy is there for pictures only (`requirements.lock` does not name it), and pyarrow would load
    it in every run: 11 MB that no operator has.
    """
    without = root / "without"
    without.mkdir(parents=True, exist_ok=True)
    message = "not in requirements.lock"
    (without / "numpy.py").write_text(f"raise ModuleNotFoundError({message!r}, name='numpy')\n")
    kept = {name: value for name, value in os.environ.items() if name not in KEPT_SETTINGS}
    return {**kept, "PYTHONPATH": str(without)}
