#!/usr/bin/env bash
# tokenizers 0.23.3: in a run of byte tokens, one byte that is no UTF-8 takes the good characters before it along.
#
# Guess before the run: decoding the byte tokens of "é" and a stray byte 0x80 gives "é" and one U+FFFD, as every UTF-8 decoder does.
# Seen: three U+FFFD. The ByteFallback decoder (Llama 2, Mistral, Gemma, Phi-3) joins all neighbouring byte tokens, and if the whole
# run is no UTF-8 it writes one U+FFFD for each byte. A text can therefore lose characters that it had one token earlier, so that
# what was streamed is no beginning of what is decoded in the end.
# Output: 'é' then '\ufffd\ufffd\ufffd'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256}
tokenizer = Tokenizer(BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
whole, stray = tokenizer.decode([0xC3, 0xA9]), tokenizer.decode([0xC3, 0xA9, 0x80])
print(ascii(whole), "then", ascii(stray))
assert whole == "é", "the two bytes of one character are decoded otherwise now"
assert stray == "\ufffd" * 3, "one stray byte is treated otherwise now"
assert bytes([0xC3, 0xA9, 0x80]).decode("utf-8", "replace") == "é\ufffd"
PYTHON
