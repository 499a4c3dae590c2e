"""Adversarial attacks and how accuracy under them is measured."""
