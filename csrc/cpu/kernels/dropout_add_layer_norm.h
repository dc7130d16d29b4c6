// z = residual + dropout(x), y = layer_norm(z), block of rows by block of rows: z is written once and normalised while
// it is in cache. Backward is layer norm's, whose second sweep writes the gradients of residual and x at once.
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
  const bool aligned = first % kDropoutGroup == 0 && !drops_everything(at.rule);
  SpanBits span;
  for (int64_t i = aligned ? dropout_whole_blocks<true, false>(at, first, 0, n) : 0; i < n; i += kSpan) {
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
                                                    args.rstd + row, args.cols, args.cols, args.eps, args.streams},
                            0, rows);
  }
}

// dz = layer norm's input gradient + dsum, dx = dz * keep * scale, of the rows of a block.
template <int kRows, bool kSum, bool kInput, bool kStream, typename T>
inline void write_gradients(const DropoutAddLayerNormBackwardArgs<T>& args, int64_t first_row,
                            const BlockMeans<Acc<T>>& block) {
  using A = Acc<T>;
  const int64_t cols = args.cols;
  const A* weight = args.weight;
  const Vec<A> scale = broadcast<A>(static_cast<A>(args.rule.scale));
  SpanBits span;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first_row + r, first = row * cols;
    const LayerNormInputGradient<A> gradient(block, r, args.mean[row], args.rstd[row]);
    const T *dy = args.dy + first, *z = args.z + first, *dsum = kSum ? args.dsum + first : nullptr;
    T *dz = args.dz != nullptr ? args.dz + first : nullptr, *dx = kInput ? args.dx + first : nullptr;
    for (int64_t begin = 0; begin < cols; begin += kSpan) {
      const int64_t count = cols - begin < kSpan ? cols - begin : kSpan;
      const int64_t offset = kInput ? fill_keep_bits_range(args.rule, first + begin, count, span.bits) : 0;
      for_each_vector<A>(count, [&](int64_t i, int64_t n) TILEWRIGHT_INLINE {
        const int64_t c = begin + i;
        Vec<A> g = load(dy + c, n);
        if (weight != nullptr) g = rounded(g * load(weight + c, n));
        Vec<A> v = gradient.of(g, load(z + c, n));
        if constexpr (kSum) v += load(dsum + c, n);
        if (dz != nullptr) store_or_stream<kStream>(dz + c, v, n);
        if constexpr (kInput) {
          store_or_stream<kStream>(dx + c, v * lanes_where(load_bits(span.bits, offset + i), scale), n);
        }
      });
    }
  }
}

template <int kRows, bool kParameterGrads, bool kStream, typename T>
int64_t dropout_add_layer_norm_backward_blocks(const DropoutAddLayerNormBackwardArgs<T>& args, int64_t row,
                                               int64_t row_end) {
  const LayerNormBackwardArgs<T> norm{args.dy,      args.z,     args.weight, args.mean, args.rstd, nullptr,
                                      args.dweight, args.dbias, args.cols,   args.cols, false};
  for (; row + kRows <= row_end; row += kRows) {
    const auto block = sum_rows<T, kRows, kParameterGrads>(norm, row);
    if constexpr (kParameterGrads) mend_dweight<kRows>(norm, row, block.xhat);
    if (args.dz == nullptr && args.dx == nullptr) continue;
    choose(args.dsum != nullptr, [&](auto sum) {
      choose(args.dx != nullptr,
             [&](auto input) { write_gradients<kRows, sum.value, input.value, kStream>(args, row, block); });
    });
  }
  return row;
}

template <typename T>
void dropout_add_layer_norm_backward_rows(const DropoutAddLayerNormBackwardArgs<T>& args, int64_t row_begin,
                                          int64_t row_end) {
  const bool streams = args.streams && (args.dz == nullptr || can_stream(args.dz, args.cols)) &&
                       (args.dx == nullptr || can_stream(args.dx, args.cols));
  choose(args.dweight != nullptr, [&](auto parameters) {
    choose(streams, [&](auto stream) {
      int64_t row = row_begin;
      if (!takes_rows_apart(args.streams, args.cols)) {
        row = dropout_add_layer_norm_backward_blocks<kBlockRows<Acc<T>>, parameters.value, stream.value>(args, row,
                                                                                                         row_end);
      }
      dropout_add_layer_norm_backward_blocks<1, parameters.value, stream.value>(args, row, row_end);
    });
  });
  if (streams) finish_streams();
}

template <typename T>
void fill_dropout_add_layer_norm(TypedKernels<T>& table) {
  table.dropout_add_layer_norm = {dropout_add_layer_norm_forward_rows<T>, dropout_add_layer_norm_backward_rows<T>};
}

}  // namespace
}  // namespace tilewright
