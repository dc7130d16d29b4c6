#include "cpu/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>

#include "cpu/kernel_table.h"
#include "ops/torch.h"

namespace tilewright {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

template <typename T>
double best_rate() {
  constexpr int kSlices = 12;
  constexpr int64_t kSteps = 1 << 20;  // about 3 ms at 4 GHz and two 512-bit multiply-adds a cycle
  const auto kernel = kernels<T>().roofline.multiply_add;
  const int64_t threads = at::get_num_threads();
  double best = 0;
  for (int slice = 0; slice < kSlices; ++slice) {
    std::atomic<int64_t> flops{0};
    const Clock::time_point start = Clock::now();
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      Acc<T> sink;
      for (int64_t i = begin; i < end; ++i) flops += kernel(kSteps, &sink);
    });
    best = std::max(best, static_cast<double>(flops.load()) / seconds_since(start) * 1e-9);
  }
  return best;
}

}  // namespace

double measure_fma_peak(const std::string& dtype) {
  if (dtype == "float32") return best_rate<float>();
  if (dtype == "float64") return best_rate<double>();
  if (dtype == "bfloat16") return best_rate<BF16>();
  if (dtype == "float16") return best_rate<F16>();
  throw std::invalid_argument("measure_fma_peak: dtype must be float32, float64, bfloat16 or float16, got '" + dtype +
                              "'");
}

}  // namespace tilewright
