"""Analog arrays: what the hardware that holds kernel matrices does to reading and to updating them.

Names, defaults and units are those of IBM's aihwkit, whose published behaviour this room reproduces in torch; where
aihwkit has a known fault the right value is computed, and the fault only under `aihwkit_compat`.
"""
