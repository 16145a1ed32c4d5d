#!/usr/bin/env bash
# tokenizers 0.23.3: DecodeStream raises for a whole stream once a byte token has come that is no UTF-8.
#
# Guess before the run: `step` holds a stray byte back as the beginning of a character, then writes U+FFFD and goes on.
# Seen: it holds the byte back for ever, and at the next ordinary token raises a plain Exception, "Invalid prefix encountered while
# decoding stream", since what it decodes anew no longer begins with what it had decoded (the neighbouring byte tokens are decoded
# as one run, see tokenizers-byte-fallback-run.sh). Any sampled model with byte fallback can write such a token; a server that calls
# `step` for several sequences in one loop loses all of them.
# Output: [None, 'é', None] then Exception: Invalid prefix encountered while decoding stream. ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE

vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "a": 257}
tokenizer = Tokenizer(BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
stream = DecodeStream()
written = [stream.step(tokenizer, token) for token in (0xC3, 0xA9, 0x80)]
try:
    stream.step(tokenizer, 257)
except Exception as error:
    seen = error
else:
    raise SystemExit("the stray byte is survived now")
print(written, "then", f"{type(seen).__name__}: {seen}")
assert written == [None, "é", None]
assert type(seen) is Exception and "Invalid prefix encountered" in str(seen)
PYTHON
