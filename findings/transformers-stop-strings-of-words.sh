#!/usr/bin/env bash
# transformers 5.24.0: stop strings fail with a tokenizer whose tokens are whole words.
#
# Guess before running: a stop string that the tokenizer can write is found, or tokenizers that do not fit are refused
# by name.
# Seen: `StopStringCriteria` decodes every token behind the text "abcdef" to see what it writes, and looks for that text
# in the result. A word-level tokenizer does not know the word and writes its unknown token instead, so making the
# criteria (and with it generate(stop_strings=..., tokenizer=...)) ends in an error that names neither.
#
#   ValueError: substring not found
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, StopStringCriteria

words = Tokenizer(WordLevel({word: place for place, word in enumerate(["?", "so", "x", "=", "1"])}, unk_token="?"))
words.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
assert tokenizer.decode(tokenizer("so x = 1").input_ids) == "so x = 1", "it can write the stop string"

try:
    StopStringCriteria(tokenizer, ["= 1"])
except ValueError as error:
    print(f"{type(error).__name__}: {error}")
    assert str(error) == "substring not found", error
else:
    raise SystemExit("the stop string is taken now")
PYTHON
