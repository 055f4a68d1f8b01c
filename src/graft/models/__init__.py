"""Turn a folder, a hub id or a GGUF file into a Base; or the settings of a fresh model."""
