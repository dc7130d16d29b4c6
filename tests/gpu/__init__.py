"""Tests of the GPU kernels: on the card, or without one in the emulation and the interpreter."""
