# Setup, the same in every chapter: on Colab it first installs flowtext.
import importlib.util
import subprocess
import sys

import torch

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
    raise ImportError(f"got torch {torch.__version__}, expected 2.9 or newer")
if importlib.util.find_spec("flowtext") is None:
    source = "git+https://github.com/flowtext/flowtext@v0.2.0"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"flowtext @ {source}"], check=True)
    importlib.invalidate_caches()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    torch.set_num_threads(1)
