#!/usr/bin/env bash
# ctranslate2 4.8.5: whether a result shows its prompt decides which tokens are written under a repetition penalty, and their score.
#
# Guess before the run: `include_prompt_in_result` cuts the prompt off what is returned; the tokens after it and their score are the
# same. (That max_length counts the prompt where it is shown is known: OpenNMT/CTranslate2 #1292.)
# Seen: without a penalty they are the same. With repetition_penalty=1.2 other tokens follow: a prompt that is shown counts as written,
# and is punished, one that is not shown is not. And the score, the mean log-probability of what was written, is divided by the length
# of the prompt too. Pass@1 of two runs that differ in this flag alone cannot be compared where a checkpoint asks for a penalty.
# Output: no penalty: same tokens True; penalty 1.2: same tokens False; scores -1.415 and -0.480 = 20/59 of it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ctranslate2==4.8.5 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerDecoderModelSpec

SIZE, WORDS, PROMPT, NEW = 32, 64, 40, 20
random = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32) * 0.3


spec = TransformerDecoderModelSpec.from_config(num_layers=1, num_heads=2, pre_norm=True)
decoder, layer = spec.decoder, spec.decoder.layer[0]
decoder.scale_embeddings = False
decoder.embeddings.weight, decoder.projection.weight = drawn(WORDS, SIZE), drawn(WORDS, SIZE)
decoder.position_encodings.encodings = drawn(512, SIZE)
decoder.projection.bias = np.zeros(WORDS, np.float32)
for norm in (decoder.layer_norm, layer.self_attention.layer_norm, layer.ffn.layer_norm):
    norm.gamma, norm.beta = np.ones(SIZE, np.float32), np.zeros(SIZE, np.float32)
linears = [*layer.self_attention.linear, layer.ffn.linear_0, layer.ffn.linear_1]
for linear, (out, into) in zip(linears, [(3, 1), (1, 1), (4, 1), (1, 4)], strict=True):
    linear.weight, linear.bias = drawn(out * SIZE, into * SIZE), np.zeros(out * SIZE, np.float32)
words = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(WORDS - 3))]
spec.register_vocabulary(words)
spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = words[:3]
spec.validate()
spec.save(sys.argv[1])
generator = ctranslate2.Generator(sys.argv[1], device="cpu", compute_type="float32")
prompt = words[4 : 4 + PROMPT]


def write(shown: bool, penalty: float) -> tuple[list[int], float]:
    length = PROMPT + NEW - 1 if shown else NEW
    [result] = generator.generate_batch(
        [prompt],
        max_length=length,
        include_prompt_in_result=shown,
        repetition_penalty=penalty,
        return_scores=True,
    )
    return result.sequences_ids[0][PROMPT if shown else 0 :], result.scores[0]


(plain, score), (plain_shown, score_shown) = write(False, 1), write(True, 1)
(other, _), (other_shown, _) = write(False, 1.2), write(True, 1.2)
print(f"no penalty: same tokens {plain == plain_shown}; penalty 1.2: same tokens {other == other_shown}; ", end="")
print(f"scores {score:.3f} and {score_shown:.3f} = {NEW}/{PROMPT + NEW - 1} of it")
assert plain == plain_shown and len(plain) == NEW
assert other != other_shown, "the penalty is the same now"
assert abs(score_shown / score - NEW / (PROMPT + NEW - 1)) < 1e-4, "the score is the same now"
PYTHON
