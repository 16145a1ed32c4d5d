#!/usr/bin/env bash
# huggingface_hub 2.4.0: a streamed answer ends with its client, also where the stream is all that is left of it.
#
# Guess before the run: `InferenceClient(...).chat_completion(..., stream=True)` returns an iterator that holds the connection which it
# reads, as `OpenAI(...).chat.completions.create(..., stream=True)` does (openai 3.57.0), so that nothing else has to be kept.
# Seen: once the last name of the client is gone, the first step of the iterator raises httpx.StreamClosed. A function that makes a client
# and returns its stream gives nothing back; with the client in a variable of the caller the same answer arrives.
# Output: client kept: ['one', 'two']; client gone: StreamClosed
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet huggingface_hub==2.4.0 httpx==0.28.1
"$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import InferenceClient


def chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "0", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        lines = [json.dumps(chunk(text)) for text in ("one", "two")] + ["[DONE]"]
        try:
            self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())
        except ConnectionError:
            pass

    def log_message(self, format: str, *values: Any) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def client() -> InferenceClient:
    return InferenceClient(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")


def ask(asked: InferenceClient) -> Iterable[Any]:
    return asked.chat_completion([{"role": "user", "content": "?"}], model="m", stream=True)


kept = client()
whole = [part.choices[0].delta.content for part in ask(kept)]
try:
    seen = str([part.choices[0].delta.content for part in ask(client())])
except Exception as error:
    seen = type(error).__name__
print(f"client kept: {whole}; client gone: {seen}")
assert whole == ["one", "two"] and seen == "StreamClosed", "a stream outlives its client now"
PYTHON
