"""Builds everything in `assets/` from one seed. Read in the order of the work.

`digits` (strokes) -> `scenes`, `arithmetic` (questions) -> `tables` (data files) -> `processing` (tokenizer, template)
-> `models` (sizes) -> `tower` (learn to see) -> `packing`, `curriculum`, `train` (learn to answer) -> `evaluate`.
"""
