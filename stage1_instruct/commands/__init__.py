"""The commands of zeus-instruct, by what they are about."""
