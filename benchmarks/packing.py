"""Time of a pass over a packed micro-batch against that over padded rows, with and without siblings.

    python -m benchmarks.packing [--cases 36/12/1x200 36/12/8x40 36/12/1x800] [--rounds 3]

A case is prompt tokens / completion tokens / completions per prompt x prompts, in one micro-batch of the bundled
policy. A pass computes the loss of all completions and its gradient, in one thread; the two take turns. The last line
is one JSON object: the median of padded ÷ packed for each case, above 1 where sharing prompts is faster, and the
milliseconds of a packed row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from r3agent.store.models import find_checkpoint
from r3agent.train.shared_prefix import pack, share


def padded_loss(model: Any, ids: torch.Tensor, width_T: int) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, -width_T - 1 : -1]
    return cross_entropy(logits.flatten(0, 1), ids[:, -width_T:].flatten())


def packed_loss(model: Any, ids: torch.Tensor, width_T: int) -> torch.Tensor:
    packed = pack(ids, torch.ones_like(ids), width_T)
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        shared_prefix=packed.shared_prefix,
        use_cache=False,
    ).logits[0]
    return cross_entropy(logits, packed.shift_labels[0])


def seconds(loss: Callable[..., torch.Tensor], model: Any, ids: torch.Tensor, width_T: int) -> float:
    """Return the CPU time of one pass."""
    model.zero_grad()
    began = time.process_time()
    loss(model, ids, width_T).backward()
    return time.process_time() - began


def compare(case: str, rounds: int) -> dict[str, float]:
    sizes, n_prompts = case.split("x")
    prompt_tokens, completion_tokens, siblings = map(int, sizes.split("/"))
    torch.manual_seed(0)
    prompts = torch.randint(5, 60, (int(n_prompts), prompt_tokens)).repeat_interleave(siblings, 0)
    ids = torch.cat([prompts, torch.randint(5, 60, (len(prompts), completion_tokens))], 1)
    padded, packed = (AutoModelForCausalLM.from_pretrained(find_checkpoint("bundled")) for _ in range(2))
    if reason := share(packed, ids.shape[1]):
        raise SystemExit(f"prompts are not shared: {reason}")
    turns = [
        (seconds(padded_loss, padded, ids, completion_tokens), seconds(packed_loss, packed, ids, completion_tokens))
        for _ in range(rounds)
    ]
    print(f"{case}: " + ", ".join(f"{one:.2f} s padded, {other:.2f} s packed" for one, other in turns), flush=True)
    ratio = median(one / other for one, other in turns)
    return {"ratio": round(ratio, 2), "packed_row_ms": round(1e3 * median(t for _, t in turns) / len(ids), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["36/12/1x200", "36/12/8x40", "36/12/1x800"], help="as above")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({case: compare(case, options.rounds) for case in options.cases}))


if __name__ == "__main__":
    main()
