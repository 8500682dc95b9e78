"""`whet export verl --run`: start verl on an exported folder, where verl and GPUs are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from whet.config.verl import Verl
from whet.errors import RunError
from whet.launch.verl.readme import VERL

PYTHON = "WHET_VERL_PYTHON"
"""Environment variable with the interpreter of verl's environment."""
ASK = (
    "import importlib.util as u, sys; "
    "print(','.join(n for n in sys.argv[1:] if u.find_spec(n) is None)); "
    "import torch; print(torch.cuda.device_count())"
)


def start(out: Path, options: Verl) -> int:
    """Run verl until it ends; its exit code. Raises RunError where verl, its engine or GPUs are missing."""
    python = os.environ.get(PYTHON) or shutil.which("python3") or "python3"
    _check(python, options)
    return subprocess.call([str(out / "run.sh")], env={**os.environ, "PYTHON": python})


def _check(python: str, options: Verl) -> None:
    needed = ["torch", "verl", "ray", "transfer_queue", options.engine]
    try:
        asked = subprocess.run([python, "-c", ASK, *needed], capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunError("cannot be started", field=PYTHON, found=f"{python}: {error.strerror}") from None
    said = [*asked.stdout.splitlines(), "", ""]
    missing, gpus = said[0], said[1]
    if missing:
        raise RunError(
            "the folder is written, and verl cannot run here", field="--run", found=f"{python} without {missing}",
            fix=f'install "verl[{options.engine},verl-core]=={VERL}" into an environment and name it by {PYTHON}',
        )  # fmt: skip
    if options.nnodes == 1 and int(gpus or 0) < options.n_gpus_per_node:
        raise RunError(
            "the folder is written, and verl needs GPUs", field="--run",
            found=f"{gpus or 0} of {options.n_gpus_per_node}", fix="start run.sh where they are",
        )  # fmt: skip
