"""More chat templates, written like those of `chat_formats`, and the table of them all."""
# ruff: noqa: E501  a line of a template cannot be broken everywhere

from typing import Final

from . import chat_formats as first

_GEMMA = (
    "{{ bos_token }}SYSTEM{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (FIRST if loop.first else '') + m.content | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_REFUSED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% set rest = messages %}"
)
_MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + EOS + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
COHERE = (
    first._SYSTEM_FIRST
    + "{{ bos_token }}{% if system %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system + "
    "'<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for m in rest %}"
    + first._ALTERNATE
    + "{% set content = m['content'] %}{% if m['role'] == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + "
    "content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
COHERE_TOOLS = """\
{%- macro type_of(spec) %}
{%- if spec.type == 'string' %}{{- 'str' }}{%- elif spec.type == 'integer' %}{{- 'int' }}
{%- elif spec.type == 'array' %}{{- 'List[' + type_of(spec['items']) + ']' }}
{%- else %}{{- spec.type | default('Any', true) }}{%- endif %}
{%- endmacro %}
{%- macro signature(tool) %}
{{- 'def ' + tool.name + '(' }}
{%- for name, spec in tool.parameters.properties | items %}
{{- name + ': ' + type_of(spec) }}{%- if not loop.last %}{{- ', ' }}{% endif %}
{%- endfor %}
{{- ') -> List[Dict]:\\n    \"\"\"' + tool.description + '\"\"\"\\n    pass\\n' }}
{%- endmacro %}
{{- bos_token }}{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Safety Preamble\\n## Tools\\n' }}
{%- for tool in tools %}{% if loop.index0 %}{{- '\\n' }}{% endif %}{{- '```python\\n' + signature(tool.function) + '```' }}
{%- endfor %}{{- '<|END_OF_TURN_TOKEN|>' }}
{%- for m in messages %}
{%- if m.role == 'system' %}{%- continue %}{%- endif %}
{%- if m.role == 'tool' %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\\n' + m.content + '\\n</results><|END_OF_TURN_TOKEN|>' }}
{%- elif m.tool_calls %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Action:\\n```json\\n' }}
{%- for call in m.tool_calls %}{{- {'tool_name': call.function.name, 'parameters': call.function.arguments} | tojson(indent=4) }}{%- endfor %}
{{- '\\n```<|END_OF_TURN_TOKEN|>' }}
{%- else %}
{{- '<|START_OF_TURN_TOKEN|><|' + {'user': 'USER', 'assistant': 'CHATBOT'}[m.role] + '_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}
"""
COHERE_RAG = """\
{{- bos_token }}
{%- for m in messages %}{{- '<|START_OF_TURN_TOKEN|>' + m.role | upper + m.content + '<|END_OF_TURN_TOKEN|>' }}{%- endfor %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>' }}
{%- for document in documents or [] %}
{{- '\\nDocument: ' ~ loop.index0 }}
{%- for key, value in document.items() %}{{- '\\n' ~ key ~ ': ' ~ value }}{%- endfor %}
{%- endfor %}
{{- '</results><|END_OF_TURN_TOKEN|>' }}
"""
HERMES = (
    first._SYSTEM_FIRST
    + "{{ bos_token }}{%- if tools %}{{- '<|im_start|>system\n' + (system + '\n' if system else '')"
    " + 'You are a function calling AI model. <tools> ' + tools | map('tojson') | join('\n') + "
    "' </tools><|im_end|>\n' }}{%- elif system %}{{- '<|im_start|>system\n' + system + "
    "'<|im_end|>\n' }}{%- endif %}\n" + first._QWEN_TURNS + first._CHATML_PROMPT
)
DEEPSEEK = """\
{%- set ns = namespace(system='', is_tool=false) -%}
{%- for m in messages if m.role == 'system' %}{% set ns.system = ns.system ~ m.content %}{% endfor -%}
{{- bos_token }}{{ ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{%- set ns.is_tool = false -%}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' and m.tool_calls %}
{%- for call in m.tool_calls %}
{{- ('<｜Assistant｜><｜tool▁calls▁begin｜>' if loop.first else '\\n') + '<｜tool▁call▁begin｜>' + call.type
   + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments | tojson + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content.split('</think>')[-1] if '</think>' in m.content else m.content %}
{{- ('' if ns.is_tool else '<｜Assistant｜>') + content + '<｜end▁of▁sentence｜>' }}{%- set ns.is_tool = false %}
{%- elif m.role == 'tool' %}{%- set ns.is_tool = true -%}
{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- endif %}
{%- endfor -%}
{%- if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""
PHI4 = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ (m.content) ~ '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GRANITE = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set turns = messages[1:] %}
{%- else %}{%- set system = "Knowledge Cutoff Date: April 2024. Today's Date: " + (date_string or '1 May 2025') %}
{%- if tools and documents %}{%- set system = system + " Use tools and documents." %}
{%- elif tools %}{%- set system = system + " Use tools." %}{%- endif %}{%- set turns = messages %}{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' }}{%- endif %}
{%- for m in turns %}
{{- '<|start_of_role|>' + (m.role if m.role != 'tool' else 'tool_response') + '<|end_of_role|>'
    + (m.content or (m.tool_calls | map(attribute='function') | list | tojson)) + '<|end_of_text|>\\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}
{%- if controls %}{{- ' ' + controls | tojson }}{% endif %}{{- '<|end_of_role|>' }}{%- endif %}
{%- endfor %}"""
VICUNA = (
    first._SYSTEM_FIRST
    + "{{ (system or 'A chat between a curious user and an assistant.') + ' ' }}{% for m in rest %}"
    + first._ALTERNATE
    + "{% if m.role == 'user' %}{{ 'USER: ' + m.content.strip() + ' ' }}{% else %}"
    "{{ 'ASSISTANT: ' + m.content.strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    first._SYSTEM_FIRST
    + "{{ system or 'Below is an instruction that describes a task.' }}\n\n{% for m in rest %}"
    "### {{ 'Instruction' if m.role == 'user' else 'Response' }}:\n{{ m.content | trim }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}{{ m.role | capitalize "
    "~ ': ' ~ m.content.replace('\r\n', '\n').replace('\n\n', '\n') | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
OPENCHAT = (
    "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m['role'].title() + ': ' + "
    "m['content'] + '<|end_of_turn|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
SOLAR = (
    "{% for m in messages %}{% if m.role == 'system' %}{% if m['content'] %}"
    "{{ '### System:\n' + m['content'] + '\n\n' }}{% endif %}{% elif m.role == 'user' %}"
    "{{ '### User:\n' + m['content'] + '\n\n' }}{% elif m.role == 'assistant' %}"
    "{{ '### Assistant:\n' + m['content'] }}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '### Assistant:\n' }}{% endif %}{% endfor %}"
)
BAICHUAN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<reserved_106>' ~ m.content }}{% else %}{{ '<reserved_107>' ~ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
)
PHI2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'Instruct: ' ~ m.content ~ '\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Output: ' ~ m.content ~ '\n' }}{% else %}"
    "{{ m.content ~ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}Output:{% endif %}"
)
YI = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]"
    "['content'] %}{% endif %}{% if system_message is defined %}{{ system_message }}{% endif %}"
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n"
    "<|im_start|>assistant\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ content + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
)
SMOLLM_TRAINED = """\
{% for m in messages %}
    {% if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {% else %}
{{ '<|im_start|>' + m.role }}
{{ m.content + '<|im_end|>' }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
COMMANDS = """\
{%- for m in messages %}
{%- if loop.index > 6 %}{% break %}{% endif %}
{%- if not m.content %}{% continue %}{% endif %}
{%- set shown %}<{{ m.role }}>{{ m.content | escape }}</{{ m.role }}>{% endset %}
{%- call(mark) wrapped() %}{{ mark }}{{ shown | indent(2, true) }}{% endcall %}
{%- endfor %}"""

FORMATS: Final[dict[str, str]] = {
    "alpaca": ALPACA,
    "baichuan": BAICHUAN,
    "breaks and blocks": "{% macro wrapped() %}{{ caller('- ') }}\n{% endmacro %}" + COMMANDS,
    "chatml": first.CHATML,
    "command-r": COHERE,
    "command-r rag": COHERE_RAG,
    "command-r tools": COHERE_TOOLS,
    "deepseek": DEEPSEEK,
    "falcon": FALCON,
    "gemma 1": _GEMMA.replace("SYSTEM", _REFUSED).replace("FIRST", "''"),
    "gemma 2": _GEMMA.replace("SYSTEM", _REFUSED).replace("FIRST", "''").replace("\n", "\\n"),
    "gemma 3": _GEMMA.replace("SYSTEM", first._SYSTEM_FIRST).replace(
        "FIRST", "(system ~ '\n\n' if system else '')"
    ),
    "granite": GRANITE,
    "hermes": HERMES,
    "internlm2": "{{ bos_token }}" + first.CHATML,
    "llama 2": first.LLAMA2,
    "llama 3": first.LLAMA3,
    "llama 3.1": first.LLAMA31,
    "mistral nemo": first.MISTRAL_NEMO,
    "mistral v1": first.MISTRAL_V1,
    "mistral v2": first.MISTRAL_V2,
    "mistral v3": first.MISTRAL_V3,
    "mistral v7": first.MISTRAL_V7,
    "olmo": "{{ eos_token }}" + _MARKED.replace("EOS", "''"),
    "openchat": OPENCHAT,
    "phi 2": PHI2,
    "phi 3": _MARKED.replace("EOS", "'<|end|>'"),
    "phi 4": PHI4,
    "qwen 2": first.QWEN2,
    "qwen 2.5": first.QWEN25,
    "qwen 3": first.QWEN3,
    "smollm 2": first.QWEN2.replace("You are a helpful assistant.", "You are SmolLM."),
    "solar": SOLAR,
    "starling": OPENCHAT.replace("GPT4 Correct ", "Code "),
    "trained on its answers": SMOLLM_TRAINED,
    "vicuna": VICUNA,
    "yi": YI,
    "zephyr": _MARKED.replace("EOS", "eos_token"),
}
