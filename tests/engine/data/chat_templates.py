"""Chat templates of known families, written after their published formats and cut to what matters here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.tiny import tiny_tokenizer_folder

CHATML = """{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

# With a default system turn where there is none, as SmolLM2's and Qwen2.5's.
CHATML_WITH_DEFAULT = """{%- for m in messages -%}
{%- if loop.first and messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif -%}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
{%- set loop_messages = messages[1:] -%}{%- set system_message = messages[0]['content'] -%}
{%- else -%}{%- set loop_messages = messages -%}{%- set system_message = false -%}{%- endif -%}
{%- for m in loop_messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}
{%- if loop.index0 == 0 and system_message -%}
{%- set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + m['content'] -%}
{%- else -%}{%- set content = m['content'] -%}{%- endif -%}
{%- if m['role'] == 'user' -%}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
{%- elif m['role'] == 'assistant' -%}{{ ' ' + content | trim + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set system_message = messages[0]['content'] | trim -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system_message = '' -%}{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system_message + '<|eot_id|>' }}
{%- if tools is not none and tools is defined -%}
{{- '<|start_header_id|>user<|end_header_id|>\n\nTools: ' + (tools | tojson) + '\n\n' }}
{{- messages[0]['content'] | trim + '<|eot_id|>' }}{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
{%- if not (m.role == 'tool' or m.role == 'ipython' or 'tool_calls' in m) -%}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- elif 'tool_calls' in m -%}
{%- if not m.tool_calls | length == 1 -%}{{- raise_exception('This model only supports single tool-calls at once!') }}
{%- endif -%}{%- set call = m.tool_calls[0].function -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
{%- else -%}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"""

# Tools stand before the last question, so that every answer changes what was written before it.
MISTRAL = """{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception('System turns are not supported') }}{%- endif -%}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token }}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools is defined and tools is not none and m == users[-1] -%}
{{- '[AVAILABLE_TOOLS]' + (tools | map(attribute='function') | list | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif -%}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined and m.tool_calls is not none -%}
{{- '[TOOL_CALLS][' }}{%- for call in m.tool_calls -%}{{- call.function | tojson }}{%- endfor -%}{{- ']' + eos_token }}
{%- elif m.role == 'assistant' -%}{{- ' ' + m.content | trim + eos_token }}
{%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS]' + m.content | string + '[/TOOL_RESULTS]' }}
{%- endif -%}
{%- endfor -%}"""

QWEN3 = """{%- if tools -%}
{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' }}{%- endif -%}
{{- '<tools>' }}{%- for tool in tools -%}{{- '\n' }}{{- tool | tojson }}{%- endfor -%}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif -%}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages | length - 1) -%}
{%- for m in messages[::-1] -%}
{%- set index = (messages | length - 1) - loop.index0 -%}
{%- if ns.multi_step_tool and m.role == 'user' and m.content is string -%}
{%- set ns.multi_step_tool = false -%}{%- set ns.last_query_index = index -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
{%- elif m.role == 'assistant' -%}
{%- set content = m.content -%}{%- set reasoning_content = '' -%}
{%- if m.reasoning_content is string -%}{%- set reasoning_content = m.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) -%}
{{- '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else -%}{{- content }}{%- endif -%}
{%- if m.tool_calls -%}{%- for call in m.tool_calls -%}
{%- if (loop.first and content) or not loop.first -%}{{- '\n' }}{%- endif -%}
{%- if call.function -%}{%- set call = call.function -%}{%- endif -%}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
{%- if call.arguments is string -%}{{- call.arguments }}{%- else -%}{{- call.arguments | tojson }}{%- endif -%}
{{- '}\n</tool_call>' }}{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}"""

GEMMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}
{%- if m['role'] == 'assistant' -%}{%- set role = 'model' -%}{%- else -%}{%- set role = m['role'] -%}{%- endif -%}
{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

PHI3 = """{%- for m in messages -%}
{%- if m['role'] == 'system' -%}{{ '<|system|>\n' + m['content'] + '<|end|>\n' }}
{%- elif m['role'] == 'user' -%}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}
{%- elif m['role'] == 'assistant' -%}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""

# R1: a thought is invited, and dropped of every answer that was given.
DEEPSEEK = """{%- set ns = namespace(system='') -%}
{%- for m in messages -%}{%- if m['role'] == 'system' -%}{%- set ns.system = m['content'] -%}{%- endif -%}{%- endfor -%}
{{- bos_token + ns.system }}
{%- for m in messages -%}
{%- if m['role'] == 'user' -%}{{- '<|User|>' + m['content'] }}
{%- elif m['role'] == 'assistant' and m['content'] is none -%}{{- '<|Assistant|>' }}
{%- for call in m['tool_calls'] -%}
{{- '<|call|>' + call['function']['name'] + '\n' + call['function']['arguments'] + '<|call_end|>' }}
{%- endfor -%}{{- '<|end_of_sentence|>' }}
{%- elif m['role'] == 'assistant' -%}
{%- set content = m['content'] -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
{{- '<|Assistant|>' + content + '<|end_of_sentence|>' }}
{%- elif m['role'] == 'tool' -%}{{- '<|output|>' + m['content'] }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|><think>\n' }}{%- endif -%}"""

ZEPHYR = """{%- for m in messages -%}
{%- if m['role'] == 'user' -%}{{ '<|user|>\n' + m['content'] + eos_token }}
{%- elif m['role'] == 'system' -%}{{ '<|system|>\n' + m['content'] + eos_token }}
{%- elif m['role'] == 'assistant' -%}{{ '<|assistant|>\n' + m['content'] + eos_token }}{%- endif -%}
{%- if loop.last and add_generation_prompt -%}{{ '\n<|assistant|>\n' }}{%- else -%}{{ '\n' }}{%- endif -%}
{%- endfor -%}"""

# An old kind: no special token at all, and no invitation of its own.
ALPACA = """{%- for m in messages -%}
{%- if m['role'] == 'user' -%}{{ '### Instruction:\n' + m['content'] + '\n\n### Response:\n' }}
{%- elif m['role'] == 'assistant' -%}{{ m['content'] + '\n\n' }}
{%- elif m['role'] == 'system' -%}{{ m['content'] + '\n\n' }}{%- endif -%}
{%- endfor -%}"""

DROPS_SYSTEM = """{%- for m in messages -%}
{%- if m['role'] in ('user', 'assistant') -%}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"""

# The template itself marks what is the assistant's, but not the token that ends a turn.
MARKED = """{%- for m in messages -%}
{{- '<|im_start|>' + m['role'] + '\n' }}
{%- if m['role'] == 'assistant' -%}{%- generation -%}{{- m['content'] }}{%- endgeneration -%}
{%- else -%}{{- m['content'] }}{%- endif -%}
{{- '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' }}{%- endif -%}"""


@dataclass(frozen=True)
class Family:
    """A template and what it makes of the answers ``one`` and ``two``, with nothing but plain turns before them.

    Attributes:
        learned: the two answers as they are learned, with what ends them.
        takes_system: whether a system turn is written as one.
    """

    template: str
    learned: tuple[str, str]
    takes_system: bool = True


FAMILIES = {
    "chatml": Family(CHATML, ("one<|im_end|>", "two<|im_end|>")),
    "smollm2": Family(CHATML_WITH_DEFAULT, ("one<|im_end|>", "two<|im_end|>")),
    "llama2": Family(LLAMA2, (" one <|endoftext|>", " two <|endoftext|>")),
    "llama3": Family(LLAMA3, ("one<|eot_id|>", "two<|eot_id|>")),
    "mistral": Family(MISTRAL, (" one<|endoftext|>", " two<|endoftext|>"), takes_system=False),
    "qwen3": Family(QWEN3, ("one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>")),
    "gemma": Family(GEMMA, ("one<end_of_turn>", "two<end_of_turn>"), takes_system=False),
    "phi3": Family(PHI3, ("one<|end|>", "two<|end|>")),
    "deepseek": Family(DEEPSEEK, ("one<|end_of_sentence|>", "two<|end_of_sentence|>")),
    "zephyr": Family(ZEPHYR, ("one<|endoftext|>", "two<|endoftext|>")),
    "alpaca": Family(ALPACA, ("one\n\n", "two\n\n<|endoftext|>")),
    "drops system": Family(DROPS_SYSTEM, ("one<|end|>", "two<|end|>"), takes_system=False),
    "marked": Family(MARKED, ("one<|im_end|>", "two<|im_end|>")),
}

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|User|>", "<|Assistant|>"),
    *("<|end_of_sentence|>", "<|call|>", "<|call_end|>", "<|output|>", "<s>"),
)


def tokenizer_with(template: str | None, *, special: tuple[str, ...] = SPECIAL) -> Any:
    """The tiny tokenizer with the families' special tokens and a chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder())
    tokenizer.add_special_tokens({"additional_special_tokens": list(special), "bos_token": "<s>"})
    tokenizer.chat_template = template
    return tokenizer


def learned_texts(tokenizer: Any, document: Any) -> list[str]:
    """Each stretch of tokens that is trained on, as text."""
    stretches: list[list[int]] = [[]]
    for token, is_trained in zip(document.ids, document.trained, strict=True):
        if is_trained:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]
