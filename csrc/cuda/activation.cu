// One launch: a block takes kItems accesses of each thread, far enough apart that a warp's are neighbours.
#include "cuda/activation.h"

#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/launch.cuh"

namespace tilewright::gpu {
namespace {

constexpr int kThreads = 256;

template <typename T, int kVec, int kItems>
__global__ void __launch_bounds__(kThreads) activation_gradient(const ActivationBackwardArgs<T> args) {
  using A = Acc<T>;
  constexpr int64_t kTile = int64_t{kThreads} * kItems;
  const int64_t accesses = args.size / kVec;
  for (int64_t tile = blockIdx.x * kTile; tile < accesses; tile += gridDim.x * kTile) {
    A x[kItems][kVec], dy[kItems][kVec];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t at = (tile + i * kThreads + threadIdx.x) * kVec;
      if (at < accesses * kVec) {
        load<kVec>(args.x + at, x[i]);
        load<kVec>(args.dy + at, dy[i]);
      }
    }
    multiply_by_slope(args.activation, x, dy);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t at = (tile + i * kThreads + threadIdx.x) * kVec;
      if (at < accesses * kVec) store<kVec>(args.dx + at, dy[i]);
    }
  }
  const int64_t last = accesses * kVec + threadIdx.x;  // what is left of a whole access
  if (kVec > 1 && blockIdx.x == 0 && last < args.size) {
    A x[1][1], dy[1][1];
    load<1>(args.x + last, x[0]);
    load<1>(args.dy + last, dy[0]);
    multiply_by_slope(args.activation, x, dy);
    store<1>(args.dx + last, dy[0]);
  }
}

template <typename T, int kVec, int kItems>
Status launch_as(const ActivationBackwardArgs<T>& args, const Launch& where) {
  const int64_t blocks = divide_up(std::max(args.size / kVec, int64_t{1}), int64_t{kThreads} * kItems);
  return launch(where, activation_gradient<T, kVec, kItems>, dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks))),
                kThreads, 0, args);
}

}  // namespace

template <typename T>
Status activation_backward(const ActivationBackwardArgs<T>& args, const Launch& where) {
  const auto is_aligned = [](const T* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (is_aligned(args.dy) && is_aligned(args.x) && is_aligned(args.dx)) {
    return launch_as<T, kWidest<T>, 2>(args, where);
  }
  return launch_as<T, 1, 4>(args, where);
}

template Status activation_backward(const ActivationBackwardArgs<float>&, const Launch&);
template Status activation_backward(const ActivationBackwardArgs<double>&, const Launch&);
template Status activation_backward(const ActivationBackwardArgs<BF16>&, const Launch&);
template Status activation_backward(const ActivationBackwardArgs<F16>&, const Launch&);

}  // namespace tilewright::gpu
