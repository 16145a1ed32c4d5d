"""Serve a model under a budget, and ask it with OpenAI's client.

    pip install 'dynts-kv[serve]' openai
    python examples/serve_and_ask.py

starts `dynts serve` with the embedded model on a free port of this machine, asks, streams, and stops it. For a model of
your own change the names in capitals; a server that runs already needs no more than `OpenAI(base_url=...)`.
"""

import subprocess
import sys

from openai import OpenAI

from dynts.tiny import WEIGHTS

MODEL, PREDICTOR = WEIGHTS, WEIGHTS / "future"
BUDGET = ["--budget", "180", "--local-window", "50", "--retention-ratio", "0.67"]
QUESTION = "d:= c - a , e:= d - b , b= 0 , g:= e + a , a= 7 , f:= b + c , c:= a + b find f? c? d? g? ."
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."

command = [sys.executable, "-m", "dynts", "serve", MODEL, "--predictor", PREDICTOR, *BUDGET, "--port", "0"]
command += ["--engine", "transformers", "--served-model-name", "tiny"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    line = server.stdout.readline()  # "serving tiny at http://127.0.0.1:PORT/v1", as soon as it answers
    if not line:
        sys.exit("the server has not started; it says why above")
    print(line, end="")
    try:
        client = OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0)
        ask = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION + INSTRUCTION}], "temperature": 0}

        reply = client.chat.completions.create(**ask)
        print("reasoning:", reply.choices[0].message.reasoning_content)
        print("answer:", reply.choices[0].message.content)
        print("usage.dynts:", reply.usage.dynts)

        print("streamed: ", end="")
        for event in client.chat.completions.create(**ask, stream=True):
            delta = event.choices[0].delta
            print(getattr(delta, "reasoning_content", None) or delta.content or "", end="", flush=True)
        print()
    finally:
        server.terminate()  # it finishes what it is asked, then ends
print("the server ended with exit code", server.returncode)
