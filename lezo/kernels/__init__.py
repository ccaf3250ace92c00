"""The noise of ``lezo.philox``, compiled: numba for the CPU, Triton for CUDA; nothing before its first use."""
