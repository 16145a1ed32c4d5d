"""vLLM's OpenAI-compatible server, with an exit code that says whether its engine died: vLLM's own says 0 then."""

import runpy
import sys

from dynts.engines.vllm import watch

if __name__ == "__main__":
    sys.argv.append(f"--middleware={watch.MIDDLEWARE}")
    # not the command `vllm`, which does not start in the CPU build
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    if watch.engine_died:
        sys.exit("the engine died; see its error above")
