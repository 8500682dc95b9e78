"""whet's command line on the stand-in for an accelerator: `run.py LIBRARY ARGUMENTS`.

torch knows it as it knows one of a package of its own: by a name, a library, and a module that speaks for the device.
"""

from __future__ import annotations

import sys
import types

import torch

NAME = "npu"


def offer(library: str) -> None:
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    said = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "_is_in_bad_fork": False,
        "device_count": 1, "current_device": 0, "set_device": None, "synchronize": None, "empty_cache": None,
        "manual_seed_all": None, "manual_seed": None, "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
        "mem_get_info": (1 << 30, 1 << 31), "max_memory_allocated": 1 << 28, "get_rng_state": torch.ByteTensor([1]),
        "set_rng_state": None,
    }  # fmt: skip
    for name, answer in said.items():
        setattr(module, name, lambda *_given, answer=answer, **_named: answer)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()


if __name__ == "__main__":
    offer(sys.argv[1])
    from whet.cli import main

    sys.exit(main(sys.argv[2:]))
