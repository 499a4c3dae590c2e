"""Hostile and damaged files: thousands of them, each of which is read rightly or refused in one line.

seeds       undamaged files of every kind that `rapa` reads, made by code
damage      what happens to bytes: flipped bits, lost ends, wrong lengths
text        the same for documents: JSON and TOML
containers  lies that only someone tells who knows the format: tensors, arrays, archives, pictures
programs    pickles that try to run something, to grow, or to end the process
kinds       for each kind its seeds, its lies, its reader, and an oracle that reads the same file in another way
judging     one case: what came of it, its CPU time and growth, what it tried to do
running     many cases in processes of their own, and some through the command line

A case is known by a seed and a number, so that every failure can be repeated: `python -m tests.fuzz --only NUMBER`.
"""
