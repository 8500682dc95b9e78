"""What a completion of the `grpo` benchmark is worth: cheap, a function of the text alone, and seldom the same twice.

A file of its own, because whet calls the function from a process of its own; it imports nothing.
"""


def share_of_letters(prompt: str, completion: str) -> float:
    """Letters among the characters; 0 where there are none."""
    return sum(map(str.isalpha, completion)) / max(1, len(completion))
