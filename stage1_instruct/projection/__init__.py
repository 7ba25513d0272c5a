"""Training what lies between vision features and language model, both frozen."""
