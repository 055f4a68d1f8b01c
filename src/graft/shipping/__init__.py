"""An adapter leaves the house: merged folders, adapter files, GGUF and four-bit models, each with a certificate."""
