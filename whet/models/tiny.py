"""A language model built on the spot, from nothing but some text.

Tests, the demo and the recipes must run where no model hub can be reached. So this module makes what a hub would have
given: a directory with a Qwen3-architecture checkpoint (random weights) and a byte-level BPE tokenizer trained on the
texts it is handed, with a ChatML chat template. Everything downstream opens it like any other checkpoint:

    path = build_tiny("runs/tiny", ["some text", "more text"])
    model = AutoModelForCausalLM.from_pretrained(path)

The same arguments give the same bytes: the seed reaches every random number, and nothing reads the clock.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML. Tools stand as one JSON object a line in the system block; a call is a JSON object between <tool_call> marks,
# and what the tool returned is a turn of the role `tool`. Arguments that come as a JSON string are printed as they are.
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages and messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Tools, one JSON object a line:\\n' }}
    {%- for tool in tools %}
        {{- (tool | tojson) + '\\n' }}
    {%- endfor %}
    {{- 'Call one with <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- elif message.content %}
            {%- for part in message.content if part.type == 'text' %}
                {{- part.text }}
            {%- endfor %}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {{- function.arguments if function.arguments is string else (function.arguments or {}) | tojson }}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build_tiny(
    directory: str | Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 512,
    hidden_size: int = 64,
    intermediate_size: int | None = None,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int | None = None,
    max_positions: int = 2048,
    rope_theta: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a random Qwen3 checkpoint and a tokenizer trained on `texts` into `directory`; return its path.

    `vocab_size` is an upper bound: short texts may not offer enough merges, and the embedding then has as many rows as
    the tokenizer has entries. At least 259 are needed, for the 256 bytes (so any text can be written) and 3 specials.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, max_positions=max_positions)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim or hidden_size // num_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The caller's random state is none of our business: leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(dtype)
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, max_positions: int = 2048, marks: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: no unknown token, no normalisation, so decoding gives back every text exactly.

    Digits stay apart, as in the Qwen tokenizers: a number is read digit by digit. `marks` are special tokens beside
    those of the turns.
    """
    specials = [PAD, TURN_START, TURN_END, *marks]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(specials)
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size}: at least {least} (256 bytes, {len(specials)} specials)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START, *marks],
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
