"""What a processor is called, on the systems that tell it in their own ways."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from whet.runs import environment

X86 = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC
flags		: fpu avx512_bf16

processor	: 1
cpu family	: 26
model name	: another
"""
ARM = """processor	: 0
BogoMIPS	: 243.75
CPU implementer	: 0x41
"""


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (X86, "AMD EPYC (family 25, model 17)"), ("model name	: Power9\n", "Power9"), (ARM, "arm"), (None, "arm"),
    ],
)  # fmt: skip
def test_name_with_family_and_model(
    told: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if told is not None:
        info.write_text(told)
    monkeypatch.setattr(environment, "Path", lambda _: info)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert environment.processor() == name
