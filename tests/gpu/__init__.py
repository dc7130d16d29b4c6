"""Tests that run on a GPU; without one, in Triton's interpreter or on emulated CUDA C++ kernels."""
