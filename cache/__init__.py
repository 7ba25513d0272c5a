"""The contract between the stages: what a cache holds, how it is written and read."""
