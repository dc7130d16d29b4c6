// z = residual + dropout(x), y = layer_norm(z), block of rows by block of rows: z is written once and normalised while
// it is in cache. Backward likewise: the layer norm's input gradient of a block, then its split to residual and x.
//
// z is rounded to the storage type before it is normalised, as the separate ops do: y is the norm of the z that the
// caller sees.
#pragma once
#include "cpu/kernels/dropout_spans.h"
#include "cpu/kernels/layer_norm.h"

namespace tilewright {
namespace {

// n consecutive elements from logical index `first` on, bits made span by span; a plain sum where nothing is dropped.
template <typename T>
inline void dropout_add_span(const DropoutArgs<T>& at, int64_t first, int64_t n) {
  if (drops_nothing(at.rule)) {
    const T *x = at.x, *residual = at.residual;
    T* z = at.y;
    for_each_vector<Acc<T>>(n, [=](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
      store(z + c, load(residual + c, lanes) + load(x + c, lanes), lanes);
    });
    return;
  }
  SpanBits span;
  for (int64_t i = 0; i < n; i += kSpan) {
    const int64_t count = n - i < kSpan ? n - i : kSpan;
    const int64_t offset = fill_keep_bits_range(at.rule, first + i, count, span.bits);
    apply_keep_bits(moved(at, i), count, span.bits, offset);
  }
}

template <typename T>
void dropout_add_layer_norm_forward_rows(const DropoutAddLayerNormForwardArgs<T>& args, int64_t row_begin,
                                         int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row += args.block_rows) {
    const int64_t rows = row_end - row < args.block_rows ? row_end - row : args.block_rows;
    const int64_t first = row * args.cols;
    T* z = args.z_is_scratch ? args.z : args.z + first;
    dropout_add_span(DropoutArgs<T>{args.x + first, args.residual + first, nullptr, z, args.cols, false, args.rule},
                     first, rows * args.cols);
    layer_norm_forward_rows(LayerNormForwardArgs<T>{z, args.weight, args.bias, args.y + first, args.mean + row,
                                                    args.rstd + row, args.cols, args.eps, false},
                            0, rows);
  }
}

// dz += dsum, dx = dz * keep * scale.
template <bool kSum, bool kInput, typename T>
inline void split_gradient(const DropoutAddLayerNormBackwardArgs<T>& args, int64_t first, int64_t n) {
  using A = Acc<T>;
  const Vec<A> scale = broadcast<A>(static_cast<A>(args.rule.scale));
  SpanBits span;
  for (int64_t i = 0; i < n; i += kSpan) {
    const int64_t count = n - i < kSpan ? n - i : kSpan;
    const int64_t offset = kInput ? fill_keep_bits_range(args.rule, first + i, count, span.bits) : 0;
    T* dz = args.dz + first + i;
    const T* dsum = kSum ? args.dsum + first + i : nullptr;
    T* dx = kInput ? args.dx + first + i : nullptr;
    for_each_vector<A>(count, [&](int64_t c, int64_t lanes) TILEWRIGHT_INLINE {
      Vec<A> v = load(dz + c, lanes);
      if constexpr (kSum) {
        v += load(dsum + c, lanes);
        store(dz + c, v, lanes);
      }
      if constexpr (kInput) store(dx + c, v * lanes_where(load_bits(span.bits, offset + c), scale), lanes);
    });
  }
}

template <typename T>
void dropout_add_layer_norm_backward_rows(const DropoutAddLayerNormBackwardArgs<T>& args, int64_t row_begin,
                                          int64_t row_end) {
  const LayerNormBackwardArgs<T> norm{args.dy, args.z,       args.weight, args.mean, args.rstd,
                                      args.dz, args.dweight, args.dbias,  args.cols, false};
  for (int64_t row = row_begin; row < row_end; row += args.block_rows) {
    const int64_t rows = row_end - row < args.block_rows ? row_end - row : args.block_rows;
    const int64_t first = row * args.cols, n = rows * args.cols;
    layer_norm_backward_rows(norm, row, row + rows);
    if (args.dz == nullptr) continue;
    if (args.dsum != nullptr && args.dx != nullptr) split_gradient<true, true>(args, first, n);
    if (args.dsum != nullptr && args.dx == nullptr) split_gradient<true, false>(args, first, n);
    if (args.dsum == nullptr && args.dx != nullptr) split_gradient<false, true>(args, first, n);
  }
}

template <typename T>
void fill_dropout_add_layer_norm(TypedKernels<T>& table) {
  table.dropout_add_layer_norm = {dropout_add_layer_norm_forward_rows<T>, dropout_add_layer_norm_backward_rows<T>};
}

}  // namespace
}  // namespace tilewright
