#!/usr/bin/env bash
# transformers 5.24.0: a GGUF file's rotary scaling is left out, without a word, for all architectures but gpt-oss.
#
# Guess before the run: `llama.rope.scaling.type = yarn` with factor 4 gives a configuration with rope_type "yarn" and factor 4, or
# an error, as a model with such positions writes nonsense in long texts without them.
# Seen: rope_type "default". (Llama 3.1's factors, which llama.cpp writes as a tensor `rope_freqs.weight`, have no place in the
# loader either: R1-Distill-Llama from GGUF has the positions of Llama 3.0.)
# Output: {'rope_theta': 500000.0, 'rope_type': 'default'}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 gguf==0.19.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import gguf
from transformers import AutoConfig

folder = Path(sys.argv[1])
writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
writer.add_block_count(2)
writer.add_context_length(131072)
writer.add_embedding_length(64)
writer.add_feed_forward_length(128)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_rope_freq_base(500000.0)
writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
writer.add_rope_scaling_factor(4.0)
writer.add_rope_scaling_orig_ctx_len(32768)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
print(config.rope_parameters)
assert config.rope_parameters["rope_theta"] == 500000.0
assert config.rope_parameters["rope_type"] == "default", "the scaling is read now"
PYTHON
