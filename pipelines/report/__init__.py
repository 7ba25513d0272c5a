"""A run or an ablation as pictures, tables and words."""
