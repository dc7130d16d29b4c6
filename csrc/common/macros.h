// Every macro that kernels share.
#pragma once

// Loop bodies passed as lambdas must vanish into the loop: a call per vector would cost more than the vector's work,
// and the lane count they are given is a constant only after inlining.
#define TILEWRIGHT_INLINE __attribute__((always_inline))

// Functions of csrc/common that CUDA kernels call too.
#if defined(__CUDACC__)
#define TILEWRIGHT_HOST_DEVICE __host__ __device__
#else
#define TILEWRIGHT_HOST_DEVICE
#endif
