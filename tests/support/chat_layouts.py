"""Chat templates in the layouts of published models, in our own words, and what each of them should teach."""

from dataclasses import dataclass

CALL = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'


@dataclass(frozen=True)
class ChatLayout:
    """A template, or several by name.

    end: the token behind every answer.  opens: words that open somebody's turn: they are never learnt.
    only_last: only the last answer has an end.  appended: the last has none, one is put behind the text.
    as_text: arguments of calls must be JSON texts.
    """

    jinja: str | dict[str, str]
    end: str = "<|im_end|>"
    opens: tuple[str, ...] = ("<|im_start|>",)
    only_last: bool = False
    appended: bool = False
    as_text: bool = False


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_USE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>" + CALL + "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% if m.role == 'user' %}<s>[INST] "
    "{% if loop.first and system is defined %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "<s>{% if tools %}<|start_header_id|>system<|end_header_id|>\n\nTools: "
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|eot_id|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", '
    '"parameters": {{ c.function.arguments | tojson }}}{% endfor %}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}" + CALL + "{% endfor %}]</s>"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content | tojson }}[/TOOL_RESULTS]"
    "{% else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}"
)
QWEN_3 = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not "
    "m.content.startswith('<tool_response>') %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}"
    "<think>\n{{ (m.reasoning_content or '').strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ m.content.lstrip('\n') }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {% if c.function.arguments is string %}'
    "{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}}\n</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content ~ '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}<s>{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{% if m.role != 'tool' %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content ~ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEEPSEEK = (
    "<s>{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}{% endfor %}</s>"
    "{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
LAST_ONLY = (
    "{% for m in messages %}{{ m.role + ': ' + m.content | trim }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# As LAST_ONLY, but the next question brings the end of an answer.
ENDED_LATER = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}{% else %}"
    "{{ eos_token if not loop.first and messages[loop.index0 - 1].role == 'assistant' }}"
    "[{{ m.role }}] {{ m.content | trim }}{% endif %}{% endfor %}"
)
# Looks into what is said, and drops the system turn where there are tools.
PEEKING = (
    "{% for m in messages %}{% if not (tools and m.role == 'system') %}<|im_start|>{{ m.role }}"
    "{{ ' (short)' if m.content.startswith('d') }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As CHATML, and it says itself what the assistant generates.
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADERS = ("<|start_header_id|>",)
_ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
LAYOUTS = {
    "chatml": ChatLayout(CHATML),
    "default and tool_use": ChatLayout({"default": CHATML, "tool_use": TOOL_USE}),
    "llama 2": ChatLayout(LLAMA_2, "</s>", ("[INST]", "[/INST]")),
    "llama 3": ChatLayout(LLAMA_3, "<|eot_id|>", _HEADERS),
    "mistral": ChatLayout(MISTRAL, "</s>", ("[INST]", "[/INST]", "[TOOL_RESULTS]")),
    "qwen 3": ChatLayout(QWEN_3),
    "gemma": ChatLayout(GEMMA, "<end_of_turn>", ("<start_of_turn>",)),
    "phi": ChatLayout(PHI, "<|end|>", _ROLES),
    "zephyr": ChatLayout(ZEPHYR, "</s>", _ROLES),
    "deepseek": ChatLayout(DEEPSEEK, "</s>", ("<|User|>", "<|Assistant|>"), as_text=True),
    "plain": ChatLayout("", "</s>", ()),  # the built-in one
    "ends the last only": ChatLayout(LAST_ONLY, "</s>", (), only_last=True),
    "ended by the next turn": ChatLayout(ENDED_LATER, "</s>", ("[user]",), appended=True),
    "peeking": ChatLayout(PEEKING),
}
