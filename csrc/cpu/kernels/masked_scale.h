// y = x * mask * scale over contiguous memory. A masked element is x * 0 * scale as in native, so NaN and Inf show.
#pragma once
#include "cpu/kernels/rows.h"
#include "cpu/kernels/typed_kernels.h"

namespace tilewright {
namespace {

template <typename A>
struct MaskBytes;
template <>
struct MaskBytes<float> {
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
  using Lanes = VecI32;
};
template <>
struct MaskBytes<double> {
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 8)));
  using Lanes = VecI64;
};

// One lane per byte: 1 where it is not 0, else 0.
template <typename A>
inline Vec<A> load_mask(const uint8_t* mask, int64_t n) {
  typename MaskBytes<A>::Bytes bytes{};
  if (n == kLanes<A>) {
    __builtin_memcpy(&bytes, mask, sizeof(bytes));
  } else {
    uint8_t buffer[sizeof(bytes)] = {};
    __builtin_memcpy(buffer, mask, static_cast<uint64_t>(n));
    __builtin_memcpy(&bytes, buffer, sizeof(bytes));
  }
  const auto lanes = __builtin_convertvector(bytes, typename MaskBytes<A>::Lanes);
  return lanes != 0 ? broadcast<A>(1) : Vec<A>{};
}

template <typename T>
void masked_scale_forward(const MaskedScaleArgs<T>& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const T* x = args.x + begin;
  const uint8_t* mask = args.mask + begin;
  T* y = args.y + begin;
  const A scale = args.scale;
  for_each_vector<A>(end - begin, [=](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    store(y + c, load(x + c, n) * (load_mask<A>(mask + c, n) * scale), n);
  });
}

template <typename T>
void fill_masked_scale(TypedKernels<T>& table) {
  table.masked_scale = {masked_scale_forward<T>};
}

}  // namespace
}  // namespace tilewright
