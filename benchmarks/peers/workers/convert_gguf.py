"""BF16 GGUF of a checkpoint, by llama.cpp's own converter: convert_gguf.py LLAMA_CPP_FOLDER CHECKPOINT OUT

The converter knows a tokenizer by a hash of what it makes of a text, and refuses one with made-up merges. Speed does
not depend on merges, so the pre-tokenizer is named here; the ids of the vocabulary stay as they are.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

llama_cpp, checkpoint, out = map(Path, sys.argv[1:])
sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]

TextModel = importlib.import_module("conversion.base").TextModel

PRE_TOKENIZERS = {"qwen3": "qwen2", "llama": "llama-bpe"}
model_type = json.loads((checkpoint / "config.json").read_text())["model_type"]
TextModel.get_vocab_base_pre = lambda self, tokenizer: PRE_TOKENIZERS[model_type]
sys.argv = ["convert_hf_to_gguf.py", str(checkpoint), "--outtype", "bf16", "--outfile", str(out)]
runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")
