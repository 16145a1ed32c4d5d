#!/usr/bin/env bash
# aiosseclient 0.1.8: an event is cut off at U+2028, U+2029 or U+0085 within its data, and what follows is lost.
#
# Guess before the run: lines of an event stream end at CR, LF or both, as its specification says, so that any other character of the
# data arrives, as it does with requests-sse 0.5.3, aiohttp-sse-client 0.2.1 and openai 3.57.0.
# Seen: lines are cut as `str.splitlines` does; the first piece is delivered as the whole event, the rest is dropped with a warning. JSON
# that a server writes without escapes is no JSON any more once a model writes such a character; with escapes (the last event) it
# arrives. huggingface_hub 2.4.0 raises JSONDecodeError on U+2028 and U+0085 in such an answer.
# Output: ['{"content": "a', '{"content": "a', '{"content": "a', '{"content": "a\\u2028b"}']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet aiosseclient==0.1.8 aiohttp==3.14.5
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import json

from aiohttp import web
from aiosseclient import aiosseclient

texts = ["a\u2028b", "a\u2029b", "a\x85b"]
sent = [json.dumps({"content": text}, ensure_ascii=False) for text in texts] + [json.dumps({"content": texts[0]})]


async def answer(request: web.Request) -> web.Response:
    body = "".join(f"data: {data}\n\n" for data in sent)
    return web.Response(text=body, content_type="text/event-stream")


async def main() -> list[str]:
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [address] = runner.addresses
    events = [event.data async for event in aiosseclient(f"http://127.0.0.1:{address[1]}/")]
    await runner.cleanup()
    return events


events = asyncio.run(main())
print(events)
assert events == ['{"content": "a'] * 3 + [sent[3]], "events are cut otherwise now"
PYTHON
