"""The noise of ``lezo.noise.philox``, compiled: numba for the CPU, Triton for CUDA; nothing before its first use."""
