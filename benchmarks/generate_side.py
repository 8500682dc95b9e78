"""One side's process: `python -m benchmarks.generate_side JOB.json OUT.json` loads the model and generates.

whet computes the log-prob of every token as it goes, because training wants it; the others are not asked to.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks.generate_job import PRECISIONS, Generated, Generation, Side, read_job, write_generated
from benchmarks.machine import peak_resident_bytes

Run = Callable[[int], list[int]]
"""The number of a run to the lengths of its answers."""


def measure(side: Side, generation: Generation) -> Generated:
    """Import the side, load, run once to warm up, then `repeats` times by the clock."""
    load, imported = loader(side), peak_resident_bytes()
    began = time.perf_counter()
    run = load(generation)
    load_seconds = time.perf_counter() - began
    run(0)
    seconds, lengths = [], []
    for number in range(1, generation.repeats + 1):
        began = time.perf_counter()
        lengths = run(number)
        seconds.append(time.perf_counter() - began)
    import torch

    on_cuda = generation.device == "cuda"
    return Generated(
        seconds=seconds,
        lengths=lengths,
        load_seconds=load_seconds,
        peak_bytes=torch.cuda.max_memory_allocated() if on_cuda else peak_resident_bytes() + children_bytes(),
        imported_bytes=0 if on_cuda else imported,
        threads=torch.get_num_threads(),
        version="" if side == "whet" else version(side),
    )


def loader(side: Side) -> Callable[[Generation], Run]:
    """What loads the side's model; its libraries are imported here."""
    match side:
        case "whet":
            import whet.rollout.native  # noqa: F401

            return load_whet
        case "transformers":
            from transformers import AutoModelForCausalLM  # noqa: F401

            return load_transformers
        case "vllm":
            import vllm  # type: ignore[import-not-found]  # noqa: F401

            return load_vllm


def load_whet(generation: Generation) -> Run:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whet.rollout.native import NativeEngine
    from whet.schema.rollouts import Request, Sampling

    dtype = getattr(torch, PRECISIONS[generation.precision])
    model = AutoModelForCausalLM.from_pretrained(generation.checkpoint, dtype=dtype)
    model = model.to(generation.device).eval().requires_grad_(False)
    size = len(generation.prompts) * generation.samples
    tokenizer = AutoTokenizer.from_pretrained(generation.checkpoint)
    engine = NativeEngine(model, tokenizer, batch_size=size, end_ids=(), dtype=dtype, pack_frozen=True)
    sampling = Sampling(max_new_tokens=generation.new_tokens)

    def run(number: int) -> list[int]:
        asked = [
            Request(key=f"{place}#{sample}", prompt_ids=tuple(prompt), sampling=sampling, seed=number)
            for place, prompt in enumerate(generation.prompts)
            for sample in range(generation.samples)
        ]
        return [len(completion.ids) for completion in engine.generate(asked)]

    return run


def load_transformers(generation: Generation) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, PRECISIONS[generation.precision])
    model = AutoModelForCausalLM.from_pretrained(generation.checkpoint, dtype=dtype)
    model = model.to(generation.device).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # no end before the budget, and no check for one
    rows = [prompt for prompt in generation.prompts for _ in range(generation.samples)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=generation.device)
    lengths = torch.tensor([len(row) for row in rows], device=generation.device)
    real = (torch.arange(longest, device=generation.device) >= longest - lengths[:, None]).long()

    def run(number: int) -> list[int]:
        torch.manual_seed(number)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=real, max_new_tokens=generation.new_tokens, do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, pad_token_id=0,
            )  # fmt: skip
        return [len(row) - longest for row in out.tolist()]

    return run


def load_vllm(generation: Generation) -> Run:
    from vllm import LLM, SamplingParams

    longest = max(map(len, generation.prompts)) + generation.new_tokens
    llm = LLM(
        model=generation.checkpoint, dtype=PRECISIONS[generation.precision], max_model_len=longest,
        skip_tokenizer_init=True,
        max_num_seqs=len(generation.prompts) * generation.samples, gpu_memory_utilization=0.5, disable_log_stats=True,
    )  # fmt: skip
    asked = [{"prompt_token_ids": prompt} for prompt in generation.prompts]

    def run(number: int) -> list[int]:
        llm.reset_prefix_cache()  # else a later run would find the prompts computed
        sampling = SamplingParams(
            n=generation.samples, temperature=1.0, top_p=1.0, top_k=0, max_tokens=generation.new_tokens,
            ignore_eos=True, detokenize=False,
        )  # fmt: skip
        found = llm.generate(asked, sampling, use_tqdm=False)
        return [len(answer.token_ids) for request in found for answer in request.outputs]

    return run


def children_bytes() -> int:
    """Most memory that the running processes started from here have held, added up (Linux)."""
    parents: dict[int, tuple[int, int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text(errors="replace").splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        parents[int(lines["Pid"])] = int(lines["PPid"]), int(lines.get("VmHWM", "0 kB").split()[0]) * 1024
    found, own = 0, {int(Path("/proc/self").resolve().name)} if parents else set()
    while own:
        own = {pid for pid, (parent, _) in parents.items() if parent in own}
        found += sum(parents[pid][1] for pid in own)
    return found


def main(job_file: str, outcome_file: str) -> int:
    write_generated(Path(outcome_file), measure(*read_job(Path(job_file))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
