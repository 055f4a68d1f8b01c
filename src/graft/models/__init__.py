"""A folder, a hub id or a GGUF file becomes a Base; so do the settings of a fresh model."""
