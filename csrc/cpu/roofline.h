// The machine's limits as benchmarks need them.
#pragma once
#include <string>

namespace tilewright {

// GFLOP/s of multiply-adds in `dtype` (float32, float64, bfloat16 or float16) on the ISA in use, with all of torch's
// threads at once: the best of several slices of a few milliseconds, because other work on the machine only takes away.
double measure_fma_peak(const std::string& dtype);

}  // namespace tilewright
