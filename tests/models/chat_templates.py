"""Chat templates with the traits of those in use, and small tokenizers for them."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
)
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
QWQ = """
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and not loop.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
R1 = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<|User|>' + m.content }}{% endif %}
    {%- if m.role == 'system' %}{{- m.content }}{% endif %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + content + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{% endif %}"""
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- endfor %}"""
LLAMA2 = """
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}
    {%- else %}{{- ' ' + m.content | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""
LLAMA3 = """
{%- for m in messages %}
    {%- set content = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' %}
    {%- if loop.first %}{% set content = bos_token + content %}{% endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
VICUNA = """
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}
    {%- else %}{{- 'ASSISTANT: ' + m.content + '</s>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{% endif %}"""
NO_END = """
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<|User|>' + m.content }}{% else %}{{- '<|Assistant|>' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|>' }}{% endif %}"""
OTHER_END = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content }}
    {%- if m.role == 'assistant' and loop.last %}{{- '<|return|>' }}{% else %}{{- '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
BLOCKS = """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
WIDE_BLOCKS = """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content + '<|im_end|>\n' }}
        {%- endgeneration %}
    {%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
BLOCKS_OF_CONTENT = """
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}
    {%- else %}{{- 'ASSISTANT: ' }}{% generation %}{{ m.content + ' ' }}{% endgeneration %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{% endif %}"""

TOOLS = """
{%- if tools %}{{- '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content }}
    {%- for call in m.tool_calls or [] %}
        {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

SPECIALS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<|User|>", "<|Assistant|>", "<|return|>", "<image>",
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<video>",
)  # fmt: skip
NOT_SPECIAL = ("<think>", "</think>")
WORDS = "Ġyes Ġno Ġthe Ġanswer answer yes no question number Ġred red ĊĊ .Ċ"


def byte_tokenizer(template: str, adds_bos: bool = False, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """Bytes, and a few words that begin with a space, as in Llama 3 or Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<pad>", "<unk>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        for stop in range(2, len(word) + 1):
            if word[:stop] not in vocabulary:
                vocabulary[word[:stop]] = len(vocabulary)
                merges.append((word[: stop - 1], word[stop - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return finished(tokenizer, template, adds_bos, eos)


def metaspace_tokenizer(
    template: str, scheme: str = "first", adds_bos: bool = False, eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """Characters and words with ``▁`` for a space before them, as in Llama 2 or Mistral."""
    letters = [chr(k) for k in range(33, 127)]
    words = ["▁yes", "▁no", "▁answer", "▁question", "answer", "yes", "no"]
    scores = [("<pad>", 0.0), ("<unk>", -20.0), ("▁", -4.0), ("\n", -4.0)]
    scores += [(letter, -5.0) for letter in letters] + [(word, -2.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return finished(tokenizer, template, adds_bos, eos)


def finished(tokenizer: Tokenizer, template: str, adds_bos: bool, eos: str) -> PreTrainedTokenizerFast:
    """The tokenizer with special tokens and a template."""
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token=eos, pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
