"""Chat templates for bases that have none, by name, in Jinja.

`plain` fits every tokenizer: letters, colons and blanks only, no '#', '=' or line break, and the end-of-text token ends
each answer. The others are the layouts that published models were tuned on. [bos] becomes {{ bos_token }} where the
tokenizer writes one by itself, else nothing.
"""

BUILTIN = {
    "plain": """
[bos]
{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {{- ' Assistant: ' + m['content'] | trim + eos_token }}
    {%- else %}
        {{- ('' if loop.first else ' ') + m['role'] | capitalize + ': ' + m['content'] | trim }}
    {%- endif %}
{%- endfor %}
{{- ' Assistant:' if add_generation_prompt else '' }}
""",
    "chatml": """
[bos]
{%- for m in messages %}
    {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}
""",
    "llama2": """
{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {{- ' ' + m['content'] | trim + ' ' + eos_token }}
    {%- elif m['role'] == 'system' %}
        [bos]
        {{- '[INST] <<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}
    {%- else %}
        {%- if loop.first or messages[loop.index0 - 1]['role'] != 'system' %}
            [bos]
            {{- '[INST] ' }}
        {%- endif %}
        {{- m['content'] | trim + ' [/INST]' }}
    {%- endif %}
{%- endfor %}
""",
    "llama3": """
[bos]
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt else '' }}
""",
    "alpaca": """
[bos]
{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {{- '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}
    {%- else %}
        {{- ('' if m['role'] == 'system' else '### Instruction:\\n') + m['content'] + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{{- '### Response:\\n' if add_generation_prompt else '' }}
""",
    "vicuna": """
[bos]
{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {{- 'ASSISTANT: ' + m['content'] | trim + eos_token }}
    {%- else %}
        {{- ('' if m['role'] == 'system' else m['role'] | upper + ': ') + m['content'] | trim + ' ' }}
    {%- endif %}
{%- endfor %}
{{- 'ASSISTANT:' if add_generation_prompt else '' }}
""",
    "zephyr": """
[bos]
{%- for m in messages %}
    {{- '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}
{%- endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt else '' }}
""",
    "guanaco": """
[bos]
{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {{- '### Assistant: ' + m['content'] | trim + eos_token + '\\n' }}
    {%- else %}
        {{- ('' if m['role'] == 'system' else '### Human: ') + m['content'] | trim + '\\n' }}
    {%- endif %}
{%- endfor %}
{{- '### Assistant:' if add_generation_prompt else '' }}
""",
}
# What these write must be one token each, or the model learns to spell its own control words.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def jinja(name: str, bos: bool) -> str:
    """The text of a built-in template; bos: whether the tokenizer begins every text with its own token."""
    return BUILTIN[name].replace("[bos]", "{{- bos_token }}" if bos else "").strip()
