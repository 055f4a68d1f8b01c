"""Built-in chat templates, by name, in Jinja: for models that bring none.

`plain` fits every tokenizer: it writes only letters, colons and blanks (no '#', '=' or line break) and ends
each answer with the end-of-text token. The others are the layouts that published models were tuned on. [bos]
becomes {{ bos_token }} if the tokenizer begins texts with that token by itself, else nothing.
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
# The control words of these templates. Each must be one token, or the model would learn to spell it.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def jinja(name: str, bos: bool) -> str:
    """Return the text of a built-in template.  bos: whether the tokenizer itself writes a token first."""
    return BUILTIN[name].replace("[bos]", "{{- bos_token }}" if bos else "").strip()
