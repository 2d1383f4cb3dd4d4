"""Files of models, described and read without torch: configuration, tensors, tokenizer, and where they are."""
