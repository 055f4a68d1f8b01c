"""Export a model: merged folders, adapter files, GGUF and four-bit models, each with a certificate."""
