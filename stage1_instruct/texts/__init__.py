"""Instruction layers that no language model writes: a user's own texts, captions from the labels; and what texts know."""
