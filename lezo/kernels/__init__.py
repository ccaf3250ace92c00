"""The noise of ``lezo.philox``, compiled: numba for the CPU, Triton for CUDA. Nothing is compiled before its first use."""
