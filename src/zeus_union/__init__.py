"""Zeus: LLM instructions cached once, multimodal mask decoders trained in minutes."""
