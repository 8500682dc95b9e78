"""Objectives over the tokens of assistant turns: a class is an algorithm by name."""

from __future__ import annotations

from typing import Literal

from whet.config.base import Section


class Nll(Section):
    """Negative log-likelihood of the assistant tokens, averaged over tokens."""

    type: Literal["nll"] = "nll"


class Dft(Section):
    """Dynamic Fine-Tuning (Wu et al., 2508.05629): the likelihood, each token weighted by its own probability."""

    type: Literal["dft"] = "dft"
