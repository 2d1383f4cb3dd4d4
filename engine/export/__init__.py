"""The finished student for other programs: a GGUF file for llama.cpp, and a folder for Ollama."""

from engine.export.gguf_file import TYPES, write_gguf
from engine.export.ollama import modelfile

__all__ = ["TYPES", "modelfile", "write_gguf"]
