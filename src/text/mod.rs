//! Prompts to context and pooled embeddings.
