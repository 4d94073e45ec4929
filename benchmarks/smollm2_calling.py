"""Train SmolLM2-135M to call functions: `python benchmarks/smollm2_calling.py SMOLLM2_DIR OUT_DIR`.

The original model writes no readable calls, so nothing can be measured with it. TRL's SFT trains it here on the gold
answers of `bfcl:simple_python`'s training tasks, calls in text; the test tasks stay unseen. It takes 25 minutes on one
core.
"""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from r3agent.tasks import bfcl


def teach(model_path: str, out: str) -> None:
    tasks = bfcl.load(None, seed=0, split="train", name="simple_python", calls="text")
    rows = [{"prompt": list(task.messages), "completion": [task.gold]} for task in tasks if task.gold]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        args=SFTConfig(
            output_dir=f"{out}.training",
            num_train_epochs=1,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(out)
    trainer.processing_class.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    teach(*sys.argv[1:])
