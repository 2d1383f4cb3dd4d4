"""GGUF files, the format of llama.cpp, Ollama and LM Studio: their headers, tensors, tokenizers and architectures."""
