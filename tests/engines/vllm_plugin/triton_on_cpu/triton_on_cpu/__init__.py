"""Lets the CPU build of vLLM run its V2 model runner, for tests.

V2 is written in Triton, and on CPUs vLLM wants a Triton with a back end for them, which no registry has. But Triton has
an interpreter, and it runs V2's kernels on a CPU. This package says that such a back end is there (entry point
`triton.backends`), and replaces the kernels of every step by NumPy (`vllm.general_plugins`), because the interpreter
takes 150 ms a step of eight requests for them; tests compare each replacement with the interpreted kernel. Kernels that
have none are interpreted. V1 keeps the C++ that vLLM has for CPUs without Triton.

It is a folder to name, nothing to install, and processes that vLLM starts find it too:

    PYTHONPATH=tests/engines/vllm_plugin/triton_on_cpu TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 dynts serve ...

Timings of V2 on a CPU are those of these replacements, not of V2's kernels.
"""
