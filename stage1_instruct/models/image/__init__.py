"""A picture becomes SAM's embedding."""
